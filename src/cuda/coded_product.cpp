#include "cuda/coded_product.h"

#include <array>

namespace kinora::cuda {

std::optional<bool> coded_product_override;

namespace {

// Which formats are multiplied so where the kernel runs; the others' weights are decoded into scratch memory.
constexpr std::array<QuantFormat, 0> kFormats{};

bool takes(QuantFormat format) {
  if (coded_product_override) return *coded_product_override;
  for (QuantFormat each : kFormats) {
    if (each == format) return true;
  }
  return false;
}

bool fits(int64_t m, int64_t n, int64_t k, const ProductFinish& finish) {
  constexpr int64_t kMost = int64_t{1} << 31;
  bool whole = n % 8 == 0 && k % 64 == 0 && finish.out_row % 8 == 0;
  return whole && finish.dtype != DType::f32 && k * 2 < kMost && n < kMost && m * ceil_div(n, 8) < kMost &&
         n * (k / 64) < kMost;
}

}  // namespace

bool coded_kernel_runs() { return coded_wgmma_runs(device_limits()); }

CodedProduct::CodedProduct(QuantFormat format, int64_t m, int64_t n, int64_t k, const ProductFinish& finish) {
  if (!takes(format) || !fits(m, n, k, finish) || !coded_kernel_runs()) return;
  arguments_.finish = finish;
  if (!finish.out_row) arguments_.finish.out_row = n;
  arguments_.m = static_cast<int>(m);
  arguments_.n = static_cast<int>(n);
  arguments_.k = static_cast<int>(k);
  launch_ = prepare_coded_wgmma(format, arguments_);
}

void CodedProduct::enqueue(cudaStream_t stream, const void* x, const CodedWeight& weight,
                           const ProductFinish::Data& data) const {
  CodedArguments arguments = arguments_;
  arguments.data = data;
  arguments.weight = weight;
  arguments.x = x;
  arguments.gate_packs = gate_packs(arguments.finish, data.gate);
  launch_(stream, arguments);
}

}  // namespace kinora::cuda
