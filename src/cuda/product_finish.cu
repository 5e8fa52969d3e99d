#include "cuda/launch.cuh"
#include "cuda/product_finish.cuh"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, int V>
struct alignas(sizeof(T) * V) Few {
  T values[V];
};

__device__ inline float as_float(int32_t x) { return static_cast<float>(x); }
template <class T>
__device__ inline float as_float(T x) {
  return to_float(x);
}

template <int V>
__device__ void load_few(const void* values, DType dtype, int64_t at, float (&out)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) out[v] = load_float(values, dtype, at + v);
}

// V neighbouring columns a thread.
template <class S, class T, int V>
__global__ void __launch_bounds__(kThreads)
    finish(const __grid_constant__ ProductFinish f, const __grid_constant__ ProductFinish::Data d) {
  begin_kernel();
  auto groups = static_cast<uint32_t>(f.columns / V);
  uint32_t index = blockIdx.x * kThreads + threadIdx.x, row = index / groups;
  if (row >= d.rows) return;
  int64_t column = int64_t{index - row * groups} * V, at = row * f.columns + column;
  auto sums = *reinterpret_cast<const Few<S, V>*>(static_cast<const S*>(d.sums) + row * f.sums_row + column);
  float y[V];
#pragma unroll
  for (int v = 0; v < V; ++v) y[v] = as_float(sums.values[v]);
  Finishing<V> with{};
  if (d.row_scale) {
    with.scaled = true;
    with.row_scale = d.row_scale[row];
    auto scales = *reinterpret_cast<const Few<float, V>*>(d.column_scale + column);
#pragma unroll
    for (int v = 0; v < V; ++v) with.column_scale[v] = scales.values[v];
  }
  if (d.bias) {
    with.biased = true;
    load_few(d.bias, f.bias_type, column, with.bias);
  }
  if (d.gate) {
    with.gated = true;
    int64_t gate[1];
    f.gates.offsets(row + static_cast<uint32_t>(d.first_row), gate);
#pragma unroll
    for (int v = 0; v < V; ++v) with.gate[v] = to_float(static_cast<const T*>(d.gate)[gate[0] + column + v]);
  }
  if (d.residual) {
    with.added = true;
    auto residual = *reinterpret_cast<const Few<T, V>*>(static_cast<const T*>(d.residual) + at);
#pragma unroll
    for (int v = 0; v < V; ++v) with.residual[v] = to_float(residual.values[v]);
  }
  finish_values<T>(y, with, f.act);
  Few<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result.values[v] = from_float<T>(y[v]);
  *reinterpret_cast<Few<T, V>*>(static_cast<T*>(d.out) + row * f.out_row + column) = result;
}

template <class S, class T>
void launch(const ProductFinish& f, const ProductFinish::Data& d, cudaStream_t stream) {
  auto start = [&]<int V>() {
    auto blocks = static_cast<unsigned>(ceil_div(d.rows * (f.columns / V), kThreads));
    start_kernel(finish<S, T, V>, blocks, kThreads, 0, stream, f, d);
  };
  if (f.columns % 4 == 0) {
    start.template operator()<4>();
  } else {
    start.template operator()<1>();
  }
}

}  // namespace

void ProductFinish::enqueue(cudaStream_t stream, const Data& d) const {
  if (d.rows * columns == 0) return;
  if (d.rows * columns >= int64_t{1} << 32) fail(ErrorKind::internal, "a product is beyond what CUDA kernels index");
  ProductFinish full = *this;
  if (!full.sums_row) full.sums_row = columns;
  if (!full.out_row) full.out_row = columns;
  with_float(dtype, [&]<class T>(T) {
    if (sums == DType::i32) {
      launch<int32_t, T>(full, d, stream);
    } else if (sums == DType::f32) {
      launch<float, T>(full, d, stream);
    } else {
      launch<T, T>(full, d, stream);
    }
  });
}

}  // namespace kinora::cuda
