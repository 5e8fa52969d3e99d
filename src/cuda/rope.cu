// Rotary embedding: a thread rotates one pack of every head of a group, so that the tables are read once for them.
#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/heads.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeadsAtOnce = 4;

struct RopeArgs {
  const void* x;
  void* out;  // [batch, n, heads, d]
  const float *cos, *sin;
  HeadStrides x_at;
  int64_t cos_batch, cos_token, sin_batch, sin_token;
  int64_t count;  // threads with work
  int n, heads, d, groups;
};

template <int N>
__device__ inline void load_floats(float (&to)[N], const float* from, bool vectors) {
  if constexpr (N % 4 == 0) {
    if (vectors) {
#pragma unroll
      for (int i = 0; i < N; i += 4) {
        float4 x = *reinterpret_cast<const float4*>(from + i);
        to[i] = x.x, to[i + 1] = x.y, to[i + 2] = x.z, to[i + 3] = x.w;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = from[i];
}

// N elements at i and their partners at i + d / 2 or, interleaved, N pairs of neighbours from 2i on. N > 1 moves them
// as packs.
template <class T, int N, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) rope_kernel(const __grid_constant__ RopeArgs a) {
  begin_kernel();
  int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= a.count) return;
  int packs = a.d / 2 / N, i = static_cast<int>(index % packs) * N;
  int group = static_cast<int>(index / packs % a.groups);
  int64_t row = index / packs / a.groups, batch = row / a.n, token = row % a.n;
  int low = kInterleaved ? 2 * i : i, high = kInterleaved ? 2 * i + N : i + a.d / 2;
  float cos[2][N], sin[2][N];
  const float *cos_row = a.cos + batch * a.cos_batch + token * a.cos_token,
              *sin_row = a.sin + batch * a.sin_batch + token * a.sin_token;
  load_floats(cos[0], cos_row + low, N > 1), load_floats(cos[1], cos_row + high, N > 1);
  load_floats(sin[0], sin_row + low, N > 1), load_floats(sin[1], sin_row + high, N > 1);
  const T* x = static_cast<const T*>(a.x) + batch * a.x_at.batch + token * a.x_at.token;
  T* out = static_cast<T*>(a.out) + row * a.heads * a.d;
  int end = min(a.heads, (group + 1) * kHeadsAtOnce);
#pragma unroll 2
  for (int head = group * kHeadsAtOnce; head < end; ++head) {
    alignas(16) T in[2 * N], rotated[2 * N];
    if constexpr (N > 1) {
      *reinterpret_cast<Pack<T>*>(in) = load_pack(x + head * a.x_at.head + low);
      *reinterpret_cast<Pack<T>*>(in + N) = load_pack(x + head * a.x_at.head + high);
    } else {
      in[0] = x[head * a.x_at.head + low], in[1] = x[head * a.x_at.head + high];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      int first = kInterleaved ? 2 * j : j, second = kInterleaved ? 2 * j + 1 : j + N;
      float p = to_float(in[first]), q = to_float(in[second]);
      rotated[first] = from_float<T>(p * cos[first / N][first % N] - q * sin[first / N][first % N]);
      rotated[second] = from_float<T>(q * cos[second / N][second % N] + p * sin[second / N][second % N]);
    }
    if constexpr (N > 1) {
      store_pack(out + head * a.d + low, *reinterpret_cast<Pack<T>*>(rotated));
      store_pack(out + head * a.d + high, *reinterpret_cast<Pack<T>*>(rotated + N));
    } else {
      out[head * a.d + low] = rotated[0], out[head * a.d + high] = rotated[1];
    }
  }
}

template <class T, int N>
void run_rope(RopeArgs a, int64_t batch, bool interleaved, cudaStream_t stream) {
  a.groups = static_cast<int>(ceil_div(a.heads, kHeadsAtOnce));
  a.count = batch * a.n * a.groups * (a.d / 2 / N);
  if (a.count == 0) return;
  auto blocks = static_cast<unsigned>(ceil_div(a.count, kThreads));
  auto kernel = interleaved ? rope_kernel<T, N, true> : rope_kernel<T, N, false>;
  start_kernel(kernel, blocks, kThreads, 0, stream, a);
}

}  // namespace

Step make_rope(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  DType dtype = spec.output().dtype;
  const Attrs& attrs = spec.node.attrs;
  bool interleaved = attrs.has("interleaved") && attrs.integer("interleaved") != 0;
  RopeArgs a{};
  a.x_at = head_strides(spec, 0);
  a.n = static_cast<int>(x[1]), a.heads = static_cast<int>(x[2]), a.d = static_cast<int>(x[3]);
  // A table is [tokens, d], or [batch, tokens, d] with one item for all or one each.
  auto place = [&](size_t input, int64_t& batch, int64_t& token) {
    const Shape& shape = spec.inputs[input].shape;
    Ints strides = strides_of(spec, input);
    batch = shape.rank() == 3 && shape[0] > 1 ? strides[0] : 0;
    token = shape[shape.rank() - 2] > 1 ? strides[static_cast<size_t>(shape.rank() - 2)] : 0;
    return batch % 4 == 0 && token % 4 == 0;
  };
  bool table = place(1, a.cos_batch, a.cos_token);
  table = place(2, a.sin_batch, a.sin_token) && table;
  auto per_pack = static_cast<int64_t>(16 / dtype_size(dtype));
  bool vectors = table && x[3] % (2 * per_pack) == 0 && all_multiples(a.x_at, per_pack);
  int64_t batch = x[0];
  Step step;
  step.run = [=](const StepArgs& args) {
    RopeArgs now = a;
    now.x = args.in[0], now.out = args.out;
    now.cos = static_cast<const float*>(args.in[1]), now.sin = static_cast<const float*>(args.in[2]);
    bool packs = vectors && is_aligned(now.x, 16) && is_aligned(now.out, 16) && is_aligned(now.cos, 16) &&
                 is_aligned(now.sin, 16);
    with_float(dtype, [&](auto zero) {
      using T = decltype(zero);
      if (packs) return run_rope<T, Pack<T>::kSize>(now, batch, interleaved, stream_of(args));
      run_rope<T, 1>(now, batch, interleaved, stream_of(args));
    });
  };
  return step;
}

}  // namespace kinora::cuda
