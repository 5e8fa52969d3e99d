// RMSNorm of each head and its rotary turn in one pass: a group of lanes holds one head's vector, a pack a lane, and
// keeps its part of the tables for the heads that follow.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/heads.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kHeadsAtOnce = 6;

struct NormRopeArgs {
  const void *x, *weight;
  void* out;  // [batch, n, heads, d]
  const float *cos, *sin;
  HeadStrides x_at;
  int64_t cos_token, sin_token;
  int64_t count;  // groups of lanes with work
  int n, heads, d, sets;
  float eps, offset;
};

struct NormRopePlace {
  int batch, token, head, end;  // heads head .. end - 1
};

__device__ inline NormRopePlace norm_rope_place(const NormRopeArgs& a, int64_t group) {
  int set = static_cast<int>(group % a.sets);
  int64_t row = group / a.sets;
  return {static_cast<int>(row / a.n), static_cast<int>(row % a.n), set * kHeadsAtOnce,
          min(a.heads, (set + 1) * kHeadsAtOnce)};
}

// d = Lanes packs; the partner of an element in the other half lies Lanes / 2 lanes away.
template <class T, int Lanes, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) norm_rope_kernel(const __grid_constant__ NormRopeArgs a) {
  begin_kernel();
  constexpr int N = Pack<T>::kSize;
  int64_t group = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / Lanes;
  bool active = group < a.count;  // the others take part in shuffles
  NormRopePlace p = norm_rope_place(a, active ? group : a.count - 1);
  int lane = static_cast<int>(threadIdx.x) % Lanes, column = lane * N;
  bool low = lane < Lanes / 2;
  float weight[N], cos[N], sin[N];
  Pack<T> weights = load_pack(static_cast<const T*>(a.weight) + column);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    weight[i] = to_float(weights.values[i]) + a.offset;
    cos[i] = a.cos[p.token * a.cos_token + column + i];
    float s = a.sin[p.token * a.sin_token + column + i];
    sin[i] = (kInterleaved ? i % 2 == 0 : low) ? -s : s;  // its sign in the sum below
  }
  const T* x = static_cast<const T*>(a.x) + p.batch * a.x_at.batch + p.token * a.x_at.token + column;
  T* out = static_cast<T*>(a.out) + (static_cast<int64_t>(p.batch) * a.n + p.token) * a.heads * a.d + column;
  Pack<T> in[kHeadsAtOnce] = {};  // all on their way before the first is needed
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    if (active && p.head + h < p.end) in[h] = load_pack(x + (p.head + h) * a.x_at.head);
  }
#pragma unroll
  for (int h = 0; h < kHeadsAtOnce; ++h) {
    float y[N], sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      y[i] = to_float(in[h].values[i]);
      sum += y[i] * y[i];
    }
#pragma unroll
    for (int step = Lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    float scale = rsqrtf(sum / static_cast<float>(a.d) + a.eps);
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] *= scale * weight[i];
    Pack<T> result;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float partner = kInterleaved ? y[i ^ 1] : __shfl_xor_sync(0xffffffffu, y[i], Lanes / 2);
      result.values[i] = from_float<T>(y[i] * cos[i] + partner * sin[i]);
    }
    if (active && p.head + h < p.end) store_pack(out + (p.head + h) * a.d, result);
  }
}

// Any even d and any address: a warp a head.
template <class T, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) plain_norm_rope_kernel(const __grid_constant__ NormRopeArgs a) {
  begin_kernel();
  int64_t group = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  if (group >= a.count) return;
  NormRopePlace p = norm_rope_place(a, group);
  int lane = static_cast<int>(threadIdx.x) % 32, half = a.d / 2;
  const T* weight = static_cast<const T*>(a.weight);
  for (int head = p.head; head < p.end; ++head) {
    const T* x = static_cast<const T*>(a.x) + p.batch * a.x_at.batch + p.token * a.x_at.token + head * a.x_at.head;
    T* out = static_cast<T*>(a.out) + ((static_cast<int64_t>(p.batch) * a.n + p.token) * a.heads + head) * a.d;
    float sum = 0;
    for (int i = lane; i < a.d; i += 32) sum += to_float(x[i]) * to_float(x[i]);
    float scale = rsqrtf(warp_sum(sum) / static_cast<float>(a.d) + a.eps);
    for (int i = lane; i < half; i += 32) {
      int first = kInterleaved ? 2 * i : i, second = kInterleaved ? 2 * i + 1 : i + half;
      float u = to_float(x[first]) * (scale * (to_float(weight[first]) + a.offset));
      float v = to_float(x[second]) * (scale * (to_float(weight[second]) + a.offset));
      const float *cos = a.cos + p.token * a.cos_token, *sin = a.sin + p.token * a.sin_token;
      out[first] = from_float<T>(u * cos[first] - v * sin[first]);
      out[second] = from_float<T>(v * cos[second] + u * sin[second]);
    }
  }
}

using NormRopeKernel = void (*)(NormRopeArgs);

template <class T, bool kInterleaved>
NormRopeKernel pack_kernel(int lanes) {
  switch (lanes) {
    case 4: return norm_rope_kernel<T, 4, kInterleaved>;
    case 8: return norm_rope_kernel<T, 8, kInterleaved>;
    case 16: return norm_rope_kernel<T, 16, kInterleaved>;
    case 32: return norm_rope_kernel<T, 32, kInterleaved>;
    default: return nullptr;
  }
}

}  // namespace

bool supports_norm_rope(const StepSpec& spec) { return spec.inputs[1].dtype == spec.inputs[0].dtype; }

Step make_norm_rope(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  const Attrs& attrs = spec.node.attrs;
  DType dtype = spec.output().dtype;
  bool interleaved = attrs.integer("interleaved") != 0;
  NormRopeArgs a{};
  a.x_at = head_strides(spec, 0);
  a.n = static_cast<int>(x[1]), a.heads = static_cast<int>(x[2]), a.d = static_cast<int>(x[3]);
  auto token = [&](size_t input) { return x[1] > 1 ? strides_of(spec, input)[0] : 0; };
  a.cos_token = token(2), a.sin_token = token(3);
  a.eps = static_cast<float>(attrs.real("eps")), a.offset = static_cast<float>(attrs.real("offset"));
  a.sets = static_cast<int>(ceil_div(a.heads, kHeadsAtOnce));
  a.count = x[0] * a.n * a.sets;
  auto per_pack = static_cast<int64_t>(16 / dtype_size(dtype));
  int lanes = a.d % per_pack == 0 && all_multiples(a.x_at, per_pack) ? static_cast<int>(a.d / per_pack) : 0;
  Step step;
  step.run = [=](const StepArgs& args) {
    if (a.count == 0) return;
    NormRopeArgs now = a;
    now.x = args.in[0], now.weight = args.in[1], now.out = args.out;
    now.cos = static_cast<const float*>(args.in[2]), now.sin = static_cast<const float*>(args.in[3]);
    bool packs = is_aligned(now.x, 16) && is_aligned(now.weight, 16) && is_aligned(now.out, 16);
    with_float(dtype, [&]<class T>(T) {
      NormRopeKernel kernel = interleaved ? pack_kernel<T, true>(lanes) : pack_kernel<T, false>(lanes);
      int width = lanes;
      if (!kernel || !packs) {
        kernel = interleaved ? plain_norm_rope_kernel<T, true> : plain_norm_rope_kernel<T, false>;
        width = 32;
      }
      auto blocks = static_cast<unsigned>(ceil_div(now.count * width, kThreads));
      start_kernel(kernel, blocks, kThreads, 0, stream_of(args), now);
    });
  };
  return step;
}

}  // namespace kinora::cuda
