#include "cuda/int8_product.h"

#include <algorithm>
#include <array>

namespace kinora::cuda {

std::optional<Int8Kernel> int8_kernel_override;

namespace {

struct Row {
  Int8Kernel kernel;
  bool (*runs)(const DeviceLimits& limits);
  Int8Launch* (*prepare)(const Int8Arguments& arguments);
};

// The first one that runs is taken.
constexpr std::array kKernels{
    Row{Int8Kernel::wgmma, int8_wgmma_runs, prepare_int8_wgmma},
    Row{Int8Kernel::mma, [](const DeviceLimits& limits) { return limits.major >= 8; }, prepare_int8_mma},
};

bool fits(int64_t m, int64_t n, int64_t k, const ProductFinish& finish) {
  constexpr int64_t kMost = int64_t{1} << 31;
  bool whole = n % 8 == 0 && k % 16 == 0 && finish.out_row % 8 == 0;
  // Of int32 sums, none overflows; indices of rows, columns, tiles and bytes of a row are int.
  return whole && k * 127 * 127 < kMost && n < kMost && m * ceil_div(n, 8) < kMost;
}

bool multiples(const Layout<1>& layout, int64_t of) {
  for (int axis = 0; axis < layout.rank; ++axis) {
    if (layout.strides[0][axis] % of != 0) return false;
  }
  return true;
}

}  // namespace

bool int8_kernel_runs(Int8Kernel kernel) {
  return std::ranges::any_of(kKernels,
                             [&](const Row& row) { return row.kernel == kernel && row.runs(device_limits()); });
}

Int8Product::Int8Product(int64_t m, int64_t n, int64_t k, const ProductFinish& finish) {
  if (!fits(m, n, k, finish)) return;
  arguments_.finish = finish;
  if (!finish.out_row) arguments_.finish.out_row = n;
  arguments_.m = static_cast<int>(m);
  arguments_.n = static_cast<int>(n);
  arguments_.k = static_cast<int>(k);
  for (const Row& row : kKernels) {
    if (!row.runs(device_limits()) || (int8_kernel_override && *int8_kernel_override != row.kernel)) continue;
    launch_ = row.prepare(arguments_);
    return;
  }
}

void Int8Product::enqueue(cudaStream_t stream, const void* x, const void* w, const ProductFinish::Data& data) const {
  constexpr int64_t kPack = 16;
  Int8Arguments arguments = arguments_;
  arguments.data = data;
  arguments.x = static_cast<const int8_t*>(x);
  arguments.w = static_cast<const int8_t*>(w);
  arguments.gate_packs =
      reinterpret_cast<uintptr_t>(data.gate) % kPack == 0 &&
      multiples(arguments.finish.gates, kPack / static_cast<int64_t>(dtype_size(arguments.finish.dtype)));
  launch_(stream, arguments);
}

}  // namespace kinora::cuda
