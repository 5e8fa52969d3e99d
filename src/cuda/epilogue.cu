#include "cuda/activation.cuh"
#include "cuda/epilogue.h"
#include "cuda/launch.cuh"

namespace kinora::cuda {
namespace {

template <class T, int V>
struct alignas(sizeof(T) * V) Few {
  T values[V];
};

// V neighbouring channels a thread.
template <class T, int V>
__global__ void finish(T* y, const T* bias, const T* residual, int64_t count, int64_t channels, int64_t row, Act act) {
  using F = Few<T, V>;
  begin_kernel();
  int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
  if (i >= count) return;
  int64_t column = i % channels;
  T* at = y + i / channels * row + column;
  F value = *reinterpret_cast<const F*>(at), add{}, more{};
  if (bias) add = *reinterpret_cast<const F*>(bias + column);
  if (residual) more = *reinterpret_cast<const F*>(residual + i);
#pragma unroll
  for (int v = 0; v < V; ++v) {
    float result = to_float(value.values[v]);
    if (bias) result += to_float(add.values[v]);
    result = activate<T>(result, act);
    if (residual) result += to_float(more.values[v]);
    value.values[v] = from_float<T>(result);
  }
  *reinterpret_cast<F*>(at) = value;
}

template <class T, int V>
void launch(const Epilogue& e, cudaStream_t stream, void* y, const void* bias, const void* residual) {
  int64_t count = e.rows * e.channels;
  auto blocks = static_cast<unsigned>(ceil_div(count / V, 256));
  start_kernel(finish<T, V>, blocks, 256, 0, stream, static_cast<T*>(y), static_cast<const T*>(bias),
               static_cast<const T*>(residual), count, e.channels, e.row ? e.row : e.channels, e.act);
}

}  // namespace

void Epilogue::enqueue(cudaStream_t stream, void* y, const void* bias, const void* residual) const {
  if ((!bias && !residual && act == Act::none) || rows * channels == 0) return;
  with_float(dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kPack = Pack<T>::kSize;
    if (channels % kPack == 0 && row % kPack == 0) {
      launch<T, kPack>(*this, stream, y, bias, residual);
    } else {
      launch<T, 1>(*this, stream, y, bias, residual);
    }
  });
}

}  // namespace kinora::cuda
