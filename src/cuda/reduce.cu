// Sums and maxima over any axes, and softmax. Every result is one warp's or one thread's, so its order is fixed.
#include <array>

#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;

struct Sum {
  static constexpr float kStart = 0;
  __device__ static float combine(float a, float b) { return a + b; }
  __device__ static float warp(float x) { return warp_sum(x); }
};
struct Max {
  static constexpr float kStart = -INFINITY;
  __device__ static float combine(float a, float b) { return fmaxf(a, b); }
  __device__ static float warp(float x) { return warp_max(x); }
};

// `outer` finds a result's first element, `inner` the elements that it is made of.
template <class T, class R>
__global__ void warp_reduce_kernel(const T* in, T* out, const __grid_constant__ Layout<1> outer,
                                   const __grid_constant__ Layout<1> inner) {
  begin_kernel();
  int64_t index = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  if (index >= outer.count) return;
  int64_t base[1], at[1];
  outer.offsets(static_cast<uint32_t>(index), base);
  float total = R::kStart;
  for (int64_t i = threadIdx.x % kWarp; i < inner.count; i += kWarp) {
    inner.offsets(static_cast<uint32_t>(i), at);
    total = R::combine(total, to_float(in[base[0] + at[0]]));
  }
  total = R::warp(total);
  if (threadIdx.x % kWarp == 0) out[index] = from_float<T>(total);
}

template <class T, class R>
__global__ void thread_reduce_kernel(const T* in, T* out, const __grid_constant__ Layout<1> outer,
                                     const __grid_constant__ Layout<1> inner) {
  begin_kernel();
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= outer.count) return;
  int64_t base[1], at[1];
  outer.offsets(static_cast<uint32_t>(index), base);
  float total = R::kStart;
  for (int64_t i = 0; i < inner.count; ++i) {
    inner.offsets(static_cast<uint32_t>(i), at);
    total = R::combine(total, to_float(in[base[0] + at[0]]));
  }
  out[index] = from_float<T>(total);
}

template <class R>
Step reduce_step(const StepSpec& spec) {
  const Shape& shape = spec.inputs[0].shape;
  Ints outer_extents, outer_strides, inner_extents, inner_strides;
  for (int axis = 0; axis < shape.rank(); ++axis) {
    const Ints& axes = spec.node.attrs.ints("axes");
    bool reduced = std::find(axes.begin(), axes.end(), axis) != axes.end();
    (reduced ? inner_extents : outer_extents).push_back(shape[axis]);
    (reduced ? inner_strides : outer_strides).push_back(spec.strides[0][static_cast<size_t>(axis)]);
  }
  Layout<1> outer = make_layout<1>(outer_extents, {outer_strides});
  Layout<1> inner = make_layout<1>(inner_extents, {inner_strides});
  DType dtype = spec.output().dtype;
  // Neighbouring threads read neighbours: of one sum where its elements are contiguous, else of different sums.
  bool by_warp = inner.rank > 0 && inner.strides[0][inner.rank - 1] == 1;
  Step step;
  step.run = [=](const StepArgs& args) {
    if (outer.count == 0) return;
    with_float(dtype, [&]<class T>(T) {
      const auto* in = static_cast<const T*>(args.in[0]);
      auto* out = static_cast<T*>(args.out);
      auto blocks = static_cast<unsigned>(ceil_div(outer.count * (by_warp ? kWarp : 1), kThreads));
      auto kernel = by_warp ? warp_reduce_kernel<T, R> : thread_reduce_kernel<T, R>;
      start_kernel(kernel, blocks, kThreads, 0, stream_of(args), in, out, outer, inner);
    });
  };
  return step;
}

template <class T>
__global__ void softmax_kernel(const T* in, T* out, int64_t rows, int64_t width) {
  begin_kernel();
  int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  if (row >= rows) return;
  in += row * width;
  out += row * width;
  int lane = threadIdx.x % kWarp;
  float peak = -INFINITY, total = 0;
  for (int64_t i = lane; i < width; i += kWarp) peak = fmaxf(peak, to_float(in[i]));
  peak = warp_max(peak);
  for (int64_t i = lane; i < width; i += kWarp) total += expf(to_float(in[i]) - peak);
  total = warp_sum(total);
  for (int64_t i = lane; i < width; i += kWarp) out[i] = from_float<T>(expf(to_float(in[i]) - peak) / total);
}

}  // namespace

Step make_sum(const StepSpec& spec) { return reduce_step<Sum>(spec); }
Step make_max(const StepSpec& spec) { return reduce_step<Max>(spec); }

Step make_softmax(const StepSpec& spec) {
  int64_t width = spec.output().shape[-1], rows = spec.output().shape.numel() / std::max<int64_t>(width, 1);
  DType dtype = spec.output().dtype;
  Step step;
  step.in_place = true;
  step.run = [=](const StepArgs& args) {
    if (rows == 0) return;
    with_float(dtype, [&]<class T>(T) {
      start_kernel(softmax_kernel<T>, static_cast<unsigned>(ceil_div(rows * kWarp, kThreads)), kThreads, 0,
                   stream_of(args), static_cast<const T*>(args.in[0]), static_cast<T*>(args.out), rows, width);
    });
  };
  return step;
}

}  // namespace kinora::cuda
