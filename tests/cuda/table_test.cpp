// The table of the CUDA backend; needs no GPU.
#include "ops/table.h"

#include <algorithm>

#include "cuda/backend.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

TEST(CudaTable, EveryOpHasAKernelOrSimplerOps) {
  for (const OpDef* op : op_table()) {
    if (op == &kReshape || op == &kPart) continue;  // never runs: its result is its input's memory
    bool listed = std::ranges::any_of(cuda::backend().kernels, [&](const Kernel& row) { return row.op == op; });
    EXPECT_TRUE(listed || op->decompose) << op->name << " has neither a CUDA kernel nor a meaning in simpler ops";
  }
}

}  // namespace
}  // namespace kinora::test
