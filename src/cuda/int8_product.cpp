#include "cuda/int8_product.h"

#include <algorithm>
#include <array>

#include "cuda/int8_kernels.h"

namespace kinora::cuda {

std::optional<Int8Kernel> int8_kernel_override;

namespace {

struct Row {
  Int8Kernel kernel;
  bool (*runs)(const DeviceLimits& limits);
  void (*enqueue)(cudaStream_t stream, const Int8Arguments& arguments);
};

// The first one that runs is taken.
constexpr std::array kKernels{
    Row{Int8Kernel::wgmma_pairs, int8_wgmma_runs, enqueue_int8_wgmma_pairs},
    Row{Int8Kernel::wgmma, int8_wgmma_runs, enqueue_int8_wgmma},
    Row{Int8Kernel::mma, [](const DeviceLimits& limits) { return limits.major >= 8; }, enqueue_int8_mma},
};

bool fits(int64_t m, int64_t n, int64_t k, const ProductFinish& finish) {
  constexpr int64_t kMost = int64_t{1} << 31;
  bool whole = n % 8 == 0 && k % 16 == 0 && finish.out_row % 8 == 0;
  // Of int32 sums, none overflows; indices of rows, columns, tiles and bytes of a row are int.
  return whole && k * 127 * 127 < kMost && n < kMost && m * ceil_div(n, 8) < kMost;
}

const Row* row_of(Int8Kernel kernel) {
  auto row = std::find_if(kKernels.begin(), kKernels.end(), [&](const Row& r) { return r.kernel == kernel; });
  return row == kKernels.end() ? nullptr : &*row;
}

Int8Kernel kernel_for(const DeviceLimits& limits) {
  for (const Row& row : kKernels) {
    if (row.runs(limits) && (!int8_kernel_override || *int8_kernel_override == row.kernel)) return row.kernel;
  }
  return Int8Kernel::none;
}

bool multiples(const Layout<1>& layout, int64_t of) {
  for (int axis = 0; axis < layout.rank; ++axis) {
    if (layout.strides[0][axis] % of != 0) return false;
  }
  return true;
}

}  // namespace

bool int8_kernel_runs(Int8Kernel kernel) {
  const Row* row = row_of(kernel);
  return row && row->runs(device_limits());
}

Int8Product::Int8Product(int64_t m, int64_t n, int64_t k, const ProductFinish& finish)
    : m_(m), n_(n), k_(k), finish_(finish), kernel_(Int8Kernel::none) {
  if (!finish_.out_row) finish_.out_row = n;
  if (fits(m, n, k, finish_)) kernel_ = kernel_for(device_limits());
}

void Int8Product::enqueue(cudaStream_t stream, const void* x, const void* w, const ProductFinish::Data& data) const {
  constexpr uintptr_t kPack = 16;
  bool aligned = reinterpret_cast<uintptr_t>(data.gate) % kPack == 0;
  row_of(kernel_)->enqueue(
      stream,
      {.finish = finish_,
       .data = data,
       .x = static_cast<const int8_t*>(x),
       .w = static_cast<const int8_t*>(w),
       .m = static_cast<int>(m_),
       .n = static_cast<int>(n_),
       .k = static_cast<int>(k_),
       .gate_packs = aligned && multiples(finish_.gates, kPack / static_cast<int64_t>(dtype_size(finish_.dtype)))});
}

}  // namespace kinora::cuda
