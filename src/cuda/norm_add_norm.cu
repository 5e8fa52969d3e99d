// What Gemma-2 has between two products: the RMSNorm of a branch, the sum with the stream, and the next branch's
// RMSNorm of that sum, in one pass. The same bits as rms_norm_add and rms_norm of norm.cu give.
#include "cuda/heads.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/norm.cuh"
#include "ops/norm.h"

namespace kinora::cuda {
namespace {

// All of one type: rows of `width` elements, one behind the other, and weights.
struct NormAddNormArgs {
  const void *x, *residual, *first, *second;
  void *sum, *out;
  int64_t rows, width;
  float eps, offset, second_eps, second_offset;
};

__device__ float scale_of(float total, const NormAddNormArgs& p, float eps) {
  return rsqrtf(total / static_cast<float>(p.width) + eps);
}

// An element of the sum, as T holds it.
template <class T>
__device__ float summed(float normed, float weight, float offset, float residual) {
  return to_float(from_float<T>(__fadd_rn(__fmul_rn(normed, weight + offset), residual)));
}

// Rows of at most Lanes · Groups groups of Group elements, kept in registers; all loads come first.
template <class T, int Group, int Groups, int Lanes>
__global__ void __launch_bounds__(block_size(Lanes)) norm_add_norm_kernel(const __grid_constant__ NormAddNormArgs p) {
  constexpr int kBlock = block_size(Lanes);
  __shared__ float shared[2][kBlock / 32];
  begin_kernel();
  int lane = static_cast<int>(threadIdx.x) % Lanes, width = static_cast<int>(p.width);
  int64_t row = int64_t{blockIdx.x} * (kBlock / Lanes) + static_cast<int>(threadIdx.x) / Lanes, begin = row * p.width;
  if (row >= p.rows) width = 0;  // nothing to do but to take part in sums
  Held<T, Group> x[Groups] = {}, residual[Groups] = {}, first[Groups] = {}, second[Groups] = {};
#pragma unroll
  for (int g = 0; g < Groups; ++g) {
    int column = (g * Lanes + lane) * Group;
    if (column >= width) continue;
    x[g] = hold<T, Group>(static_cast<const T*>(p.x) + begin + column);
    residual[g] = hold<T, Group>(static_cast<const T*>(p.residual) + begin + column);
    first[g] = hold<T, Group>(static_cast<const T*>(p.first) + column);
    second[g] = hold<T, Group>(static_cast<const T*>(p.second) + column);
  }
  float values[Groups][Group], total = 0;
#pragma unroll
  for (int g = 0; g < Groups; ++g) {
    numbers_of<T, Group>(x[g], values[g]);
    if ((g * Lanes + lane) * Group >= width) continue;
#pragma unroll
    for (int i = 0; i < Group; ++i) total += values[g][i] * values[g][i];
  }
  float scale = scale_of(lanes_sum<Lanes>(total, shared[0]), p, p.eps);
  total = 0;
#pragma unroll
  for (int g = 0; g < Groups; ++g) {
    int column = (g * Lanes + lane) * Group;
    if (column >= width) continue;
    float weight[Group], r[Group];
    numbers_of<T, Group>(first[g], weight);
    numbers_of<T, Group>(residual[g], r);
#pragma unroll
    for (int i = 0; i < Group; ++i) values[g][i] = summed<T>(values[g][i] * scale, weight[i], p.offset, r[i]);
    write_group<T, Group>(static_cast<T*>(p.sum) + begin + column, values[g]);
#pragma unroll
    for (int i = 0; i < Group; ++i) total += values[g][i] * values[g][i];
  }
  scale = scale_of(lanes_sum<Lanes>(total, shared[1]), p, p.second_eps);
#pragma unroll
  for (int g = 0; g < Groups; ++g) {
    int column = (g * Lanes + lane) * Group;
    if (column >= width) continue;
    float weight[Group], y[Group];
    numbers_of<T, Group>(second[g], weight);
#pragma unroll
    for (int i = 0; i < Group; ++i) y[i] = __fmul_rn(values[g][i] * scale, weight[i] + p.second_offset);
    write_group<T, Group>(static_cast<T*>(p.out) + begin + column, y);
  }
}

// Any width: a block a row, a thread reads back only what it wrote.
template <class T>
__global__ void __launch_bounds__(kNormThreads) wide_norm_add_norm_kernel(const __grid_constant__ NormAddNormArgs p) {
  __shared__ float shared[2][kNormThreads / 32];
  begin_kernel();
  int64_t begin = int64_t{blockIdx.x} * p.width;
  const auto *x = static_cast<const T*>(p.x) + begin, *residual = static_cast<const T*>(p.residual) + begin;
  const auto *first = static_cast<const T*>(p.first), *second = static_cast<const T*>(p.second);
  auto *sum = static_cast<T*>(p.sum) + begin, *out = static_cast<T*>(p.out) + begin;
  auto scale_of_row = [&](const T* values, float eps, float* sums) {
    float total = 0;
    for (int64_t c = threadIdx.x; c < p.width; c += kNormThreads) total += to_float(values[c]) * to_float(values[c]);
    return scale_of(lanes_sum<kNormThreads>(total, sums), p, eps);
  };
  float scale = scale_of_row(x, p.eps, shared[0]);
  for (int64_t c = threadIdx.x; c < p.width; c += kNormThreads) {
    float y = summed<T>(to_float(x[c]) * scale, to_float(first[c]), p.offset, to_float(residual[c]));
    sum[c] = from_float<T>(y);
  }
  scale = scale_of_row(sum, p.second_eps, shared[1]);
  for (int64_t c = threadIdx.x; c < p.width; c += kNormThreads) {
    out[c] = from_float<T>(__fmul_rn(to_float(sum[c]) * scale, to_float(second[c]) + p.second_offset));
  }
}

template <class T, int Group>
bool launch_narrow(const NormAddNormArgs& p, cudaStream_t stream) {
  return first_that_fits([&]<int Groups, int Lanes>() {
    if (p.width > int64_t{Groups} * Lanes * Group) return false;
    auto blocks = static_cast<unsigned>(ceil_div(p.rows, block_size(Lanes) / Lanes));
    start_kernel(norm_add_norm_kernel<T, Group, Groups, Lanes>, blocks, block_size(Lanes), 0, stream, p);
    return true;
  });
}

template <class T>
void launch(const NormAddNormArgs& p, cudaStream_t stream) {
  bool packs = p.width % Pack<T>::kSize == 0;
  for (const void* pointer :
       {p.x, p.residual, p.first, p.second, static_cast<const void*>(p.sum), static_cast<const void*>(p.out)}) {
    packs = packs && is_aligned(pointer, 16);
  }
  if (packs ? launch_narrow<T, Pack<T>::kSize>(p, stream) : launch_narrow<T, 1>(p, stream)) return;
  start_kernel(wide_norm_add_norm_kernel<T>, static_cast<unsigned>(p.rows), kNormThreads, 0, stream, p);
}

}  // namespace

bool supports_norm_add_norm(const StepSpec& spec) {
  const TensorSpec& x = spec.inputs[0];
  return x.shape.rank() > 0 && x.shape.numel() < int64_t{1} << 32 && spec.inputs[2].dtype == x.dtype &&
         spec.inputs[3].dtype == x.dtype;
}

Step make_norm_add_norm(const StepSpec& spec) {
  const Shape& shape = spec.inputs[0].shape;
  DType dtype = spec.inputs[0].dtype;
  const Attrs& attrs = spec.node.attrs;
  NormAddNormArgs p{};
  p.rows = shape.product(0, shape.rank() - 1), p.width = shape[-1];
  p.eps = static_cast<float>(attrs.real("eps")), p.offset = static_cast<float>(attrs.real("offset"));
  p.second_eps = static_cast<float>(attrs.real("second_eps"));
  p.second_offset = static_cast<float>(attrs.real("second_offset"));
  int64_t out_at = bytes_before_made(spec.inputs[0]);
  Step step;
  step.run = [=](const StepArgs& args) {
    if (p.rows * p.width == 0) return;
    NormAddNormArgs now = p;
    now.x = args.in[0], now.residual = args.in[1], now.first = args.in[2], now.second = args.in[3];
    now.sum = args.out, now.out = static_cast<uint8_t*>(args.out) + out_at;
    with_float(dtype, [&]<class T>(T) { launch<T>(now, stream_of(args)); });
  };
  return step;
}

}  // namespace kinora::cuda
