// Every op on the GPU against the CPU, in each float type, and its bits from run to run.
#include <cstring>

#include "cuda_support.h"
#include "ops/op_cases.h"

namespace kinora::test {
namespace {

class CudaOpTable : public testing::TestWithParam<size_t> {
 protected:
  const OpCase& op_case() const { return op_cases()[GetParam()]; }

  void agree(DType dtype) const {
    const OpCase& c = op_case();
    Feed feed = make_inputs(c);
    // Both sides get what the type can hold; an op's inputs that are float32 by definition are the same on both.
    Graph graph = build(c, dtype);
    Tensor got = run_on_gpu(graph, feed).at("y");
    Feed rounded = feed;
    for (auto& [name, tensor] : rounded) {
      if (tensor.dtype() == DType::f32) tensor = tensor.to(dtype).to(DType::f32);
    }
    Tensor expected = run_graph(build(c), rounded).at("y");
    expect_close(got, expected, dtype, c.terms, c.name);
    Tensor again = run_on_gpu(graph, feed).at("y");
    EXPECT_EQ(std::memcmp(got.raw(), again.raw(), got.bytes()), 0) << c.name << ": other bits on a second run";
  }
};

// Ops with inputs that are float32 by definition, or results that jump: quantized rows of a result that was rounded
// before are not those of one that was not (quantized_test.cpp has these in 16 bits).
bool only_float32(const OpCase& c) {
  for (const char* op : {"layer_norm_rows", "rms_norm_rows", "act_mul_rows", "mul_add_rows"}) {
    if (c.name.starts_with(op)) return true;
  }
  return c.name == "step" || c.name == "cast" || c.name.starts_with("rope") || c.name.starts_with("rms_norm_rope") ||
         has_bias(c);
}

TEST_P(CudaOpTable, Float32) {
  KINORA_NEEDS_GPU();
  agree(DType::f32);
}
TEST_P(CudaOpTable, Bfloat16) {
  KINORA_NEEDS_GPU();
  if (!only_float32(op_case())) agree(DType::bf16);
}
TEST_P(CudaOpTable, Float16) {
  KINORA_NEEDS_GPU();
  if (!only_float32(op_case())) agree(DType::f16);
}

INSTANTIATE_TEST_SUITE_P(All, CudaOpTable, testing::Range(size_t{0}, op_cases().size()), [](const auto& param) {
  std::string name = op_cases()[param.param].name;
  for (char& ch : name) ch = std::isalnum(static_cast<unsigned char>(ch)) ? ch : '_';
  return name;
});

}  // namespace
}  // namespace kinora::test
