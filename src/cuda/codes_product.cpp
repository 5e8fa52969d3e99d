#include "cuda/codes_product.h"

#include <algorithm>
#include <array>

#include "cuda/codes_tiles.h"

namespace kinora::cuda {

std::optional<CodesKernel> codes_kernel_override;

namespace {

struct Row {
  CodesKernel kernel;
  bool fp8;  // takes it, too
  bool (*runs)(const DeviceLimits& limits);
  CodesLaunch* (*prepare)(const CodesArguments& arguments);
};

// The first one that runs is taken.
constexpr std::array kKernels{
    Row{CodesKernel::wgmma, true, codes_wgmma_runs, prepare_codes_wgmma},
    Row{CodesKernel::mma, false, [](const DeviceLimits& limits) { return limits.major >= 8; }, prepare_int8_mma},
};

bool takes(const Row& row, DType codes) { return row.runs(device_limits()) && (codes == DType::i8 || row.fp8); }

bool fits(int64_t m, int64_t n, int64_t k, const ProductFinish& finish) {
  constexpr int64_t kMost = int64_t{1} << 31;
  bool whole = n % 8 == 0 && k % 16 == 0 && finish.out_row % 8 == 0;
  // Of int32 sums, none overflows; indices of rows, columns, tiles and bytes of a row are int.
  return whole && k * 127 * 127 < kMost && n < kMost && m * ceil_div(n, 8) < kMost;
}

// Of FP8 codes, where cuBLASLt's products are slower: those whose tiles are all at work at once. What a row becomes may
// not depend on how many there are, so only where both give the same bits.
bool best_for_fp8(int64_t m, int64_t n, int64_t k, const ProductFinish& finish) {
  int blocks = device_limits().multiprocessors;
  WgmmaTile tile = wgmma_tile(static_cast<int>(m), static_cast<int>(n), static_cast<int>(k), blocks);
  bool same = finish.act == Act::none && !finish.gated && finish.bias_type == finish.dtype && !finish.out_row;
  return same && ceil_div(m, tile.rows()) * ceil_div(n, tile.columns) <= blocks;
}

}  // namespace

bool codes_kernel_runs(CodesKernel kernel, DType codes) {
  return std::ranges::any_of(kKernels, [&](const Row& row) { return row.kernel == kernel && takes(row, codes); });
}

CodesProduct::CodesProduct(DType codes, int64_t m, int64_t n, int64_t k, const ProductFinish& finish) {
  if (!fits(m, n, k, finish)) return;
  if (codes == DType::f8_e4m3 && !codes_kernel_override && !best_for_fp8(m, n, k, finish)) return;
  arguments_.codes = codes;
  arguments_.finish = finish;
  if (!finish.out_row) arguments_.finish.out_row = n;
  arguments_.m = static_cast<int>(m);
  arguments_.n = static_cast<int>(n);
  arguments_.k = static_cast<int>(k);
  for (const Row& row : kKernels) {
    if (!takes(row, codes) || (codes_kernel_override && *codes_kernel_override != row.kernel)) continue;
    launch_ = row.prepare(arguments_);
    return;
  }
}

void CodesProduct::enqueue(cudaStream_t stream, const void* x, const void* w, const ProductFinish::Data& data) const {
  CodesArguments arguments = arguments_;
  arguments.data = data;
  arguments.x = static_cast<const int8_t*>(x);
  arguments.w = static_cast<const int8_t*>(w);
  launch_(stream, arguments);
}

}  // namespace kinora::cuda
