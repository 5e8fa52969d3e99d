// ReLU linear attention in three kernels: sums of v'·relu(k)ᵀ over chunks of tokens, their sum in a fixed order, and
// the product of that state with relu(q). The first and last read each of q, k and v once and are bound by memory.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/linear_attention.cuh"

namespace kinora::cuda {
namespace {

constexpr int kHeads = 4;  // neighbouring heads of one block, so that it reads long stretches of memory
constexpr int kLines = 2;  // warps of one head, each with every second group of tokens
constexpr int kAhead = 2;  // steps that a warp's loads are ahead of its products
constexpr int kThreads = 32 * kHeads * kLines;
constexpr int kTileTokens = 16, kTileRows = 32, kTileColumns = 128;  // of the plain path

struct Place {
  int batch, head, first, end;  // the tokens of this warp's chunk
};

__device__ inline Place place_of(const LinearArgs& a, int warp_head) {
  int groups = (a.heads + kHeads - 1) / kHeads, item = static_cast<int>(blockIdx.x);
  int group = item % groups, chunk = item / groups % a.chunks, batch = item / groups / a.chunks;
  return {batch, group * kHeads + warp_head, chunk * a.chunk, min(a.n, (chunk + 1) * a.chunk)};
}

template <class T>
__device__ inline void load_tokens(Tokens& t, const T* k, const T* v, const LinearArgs& a, int left) {
#pragma unroll
  for (int u = 0; u < 4; ++u) {
    t.k[u] = u < left ? *reinterpret_cast<const uint2*>(k + u * a.k_at.token) : make_uint2(0, 0);
    t.v[u] = u < left ? *reinterpret_cast<const uint2*>(v + u * a.v_at.token) : make_uint2(0, 0);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) sum_chunks_kernel(const __grid_constant__ LinearArgs a) {
  __shared__ float others[kHeads][36][32];
  begin_kernel();
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int line = warp / kHeads, g = lane / 4, c = lane % 4;
  Place p = place_of(a, warp % kHeads);
  bool there = p.head < a.heads;
  TokenSums sums;
  if (there) {
    int token = p.first + line * kLinearStep + 4 * c;
    const T* k = head_of<T>(a.k, a.k_at, p.batch, p.head) + token * a.k_at.token + 4 * g;
    const T* v = head_of<T>(a.v, a.v_at, p.batch, p.head) + token * a.v_at.token + 4 * g;
    Tokens ahead[kAhead];
    auto load_next = [&](Tokens& t) {
      load_tokens<T>(t, k, v, a, p.end - token);
      token += kLines * kLinearStep;
      k += kLines * kLinearStep * a.k_at.token;
      v += kLines * kLinearStep * a.v_at.token;
    };
#pragma unroll
    for (int i = 0; i < kAhead; ++i) load_next(ahead[i]);
    for (int first = p.first + line * kLinearStep; first < p.end; first += kAhead * kLines * kLinearStep) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {  // behind the end are zeros
        Tokens now = ahead[i];
        load_next(ahead[i]);
        sums.add<T>(now);
      }
    }
  }
  float* mine = &others[warp % kHeads][0][lane];
  static_assert(kLines == 2);
  if (line > 0) {
#pragma unroll
    for (int e = 0; e < 36; ++e) mine[32 * e] = e < 32 ? sums.products[e / 16][e / 4 % 4][e % 4] : sums.keys[e % 4];
  }
  __syncthreads();
  if (line > 0 || !there) return;
#pragma unroll
  for (int e = 0; e < 36; ++e) (e < 32 ? sums.products[e / 16][e / 4 % 4][e % 4] : sums.keys[e % 4]) += mine[32 * e];
  int64_t chunk = p.first / a.chunk + a.chunks * (p.head + static_cast<int64_t>(p.batch) * a.heads);
  sums.store(a.parts + chunk * kLinearState);
}

// states[i] = Σ over chunks of parts
__global__ void __launch_bounds__(256)
    add_chunks_kernel(const float* parts, float* states, int chunks, int64_t state, int64_t count) {
  begin_kernel();
  int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= count) return;
  const float* from = parts + i / state * state * chunks + i % state;
  float total = 0;
#pragma unroll 8
  for (int chunk = 0; chunk < chunks; ++chunk) total += from[chunk * state];
  states[i] = total;
}

// The state as B of products, split in three parts of T that together have float32's accuracy. Lane (g, c) reads
// elements 8c .. 8c + 7 of the queries of tokens g and g + 8: along k, product s has 8c + 4s .. 8c + 4s + 3. Column g
// of product t is element 8·(g / 2) + 2t + g % 2 of the result, so that a lane ends with elements 8c .. 8c + 7; product
// 4 has the denominator as its column 0.
struct SplitState {
  uint32_t b[5][2][2][3];  // [product, half of k, register, part]
  float factor;            // a power of two that the state was multiplied by to fit T
};

template <class T>
__device__ inline void load_state(SplitState& split, const float* state, int lane) {
  int g = lane / 4, c = lane % 4;
  float4 rows[5][2];
  float top = 0;
#pragma unroll
  for (int t = 0; t < 5; ++t) {
    int row = t < 4 ? 8 * (g / 2) + 2 * t + g % 2 : kLinearDim;
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const float* from = state + row * kLinearDim + 8 * c + 4 * s;
      rows[t][s] = t < 4 || g == 0 ? *reinterpret_cast<const float4*>(from) : make_float4(0, 0, 0, 0);
      const float4& x = rows[t][s];
      top = fmaxf(top, fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))));
    }
  }
  split.factor = 1;
  if constexpr (Pair<T>::kNarrow) {  // float16: the largest becomes 2^14 .. 2^15
    top = warp_max(top);
    int exponent = top > 0 ? 15 - min(max(ilogbf(top) + 1, -100), 120) : 0;
    split.factor = ldexpf(1.0f, exponent);
  }
#pragma unroll
  for (int t = 0; t < 5; ++t) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const float values[4] = {rows[t][s].x, rows[t][s].y, rows[t][s].z, rows[t][s].w};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float low = values[2 * r] * split.factor, high = values[2 * r + 1] * split.factor;
#pragma unroll
        for (int part = 0; part < 3; ++part) {
          uint32_t bits = Pair<T>::of(low, high);
          float2 taken = Pair<T>::floats(bits);
          split.b[t][s][r][part] = bits;
          low -= taken.x;
          high -= taken.y;
        }
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) apply_kernel(const __grid_constant__ LinearArgs a) {
  begin_kernel();
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int line = warp / kHeads, g = lane / 4, c = lane % 4;
  Place p = place_of(a, warp % kHeads);
  if (p.head >= a.heads) return;
  SplitState split;
  load_state<T>(split, a.states + (static_cast<int64_t>(p.batch) * a.heads + p.head) * kLinearState, lane);
  float eps = a.eps * split.factor;
  const T* q = head_of<T>(a.q, a.q_at, p.batch, p.head) + 8 * c;
  T* out = static_cast<T*>(a.out) + (static_cast<int64_t>(p.batch) * a.n * a.heads + p.head) * kLinearDim + 8 * c;
  int64_t row = static_cast<int64_t>(a.heads) * kLinearDim;
  int token = p.first + line * kLinearStep + g, next = token;
  uint4 ahead[kAhead][2];
  auto load_next = [&](uint4(&x)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int at = next + 8 * half;
      x[half] = at < p.end ? *reinterpret_cast<const uint4*>(q + at * a.q_at.token) : make_uint4(0, 0, 0, 0);
    }
    next += kLines * kLinearStep;
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load_next(ahead[i]);
  for (int first = p.first + line * kLinearStep; first < p.end; first += kAhead * kLines * kLinearStep) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const uint32_t queries[2][4] = {{Pair<T>::relu(ahead[i][0].x), Pair<T>::relu(ahead[i][1].x),
                                       Pair<T>::relu(ahead[i][0].y), Pair<T>::relu(ahead[i][1].y)},
                                      {Pair<T>::relu(ahead[i][0].z), Pair<T>::relu(ahead[i][1].z),
                                       Pair<T>::relu(ahead[i][0].w), Pair<T>::relu(ahead[i][1].w)}};
      load_next(ahead[i]);
      float sums[5][4] = {};
#pragma unroll
      for (int part = 2; part >= 0; --part) {  // the small ones first
#pragma unroll
        for (int s = 0; s < 2; ++s) {
#pragma unroll
          for (int t = 0; t < 5; ++t) mma<T>(sums[t], queries[s], split.b[t][s][0][part], split.b[t][s][1][part]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float factor = 1.0f / (__shfl_sync(0xffffffffu, sums[4][2 * half], lane / 4 * 4) + eps);
        auto pair = [&](int t) { return Pair<T>::of(sums[t][2 * half] * factor, sums[t][2 * half + 1] * factor); };
        uint4 y = make_uint4(pair(0), pair(1), pair(2), pair(3));
        if (token + 8 * half < p.end) *reinterpret_cast<uint4*>(out + (token + 8 * half) * row) = y;
      }
      token += kLines * kLinearStep;
    }
  }
}

// Any dimension and type, in float32. A block sums rows y0 .. y0 + 31 and columns x0 .. x0 + 127 of the state over one
// chunk, 4x4 of them a thread; states lie transposed, [d, d + 1].
template <class T>
__global__ void __launch_bounds__(256) sum_chunks_plain_kernel(const __grid_constant__ LinearArgs a) {
  __shared__ __align__(16) float k_tile[kTileTokens][kTileColumns], v_tile[kTileTokens][kTileRows];
  begin_kernel();
  int chunk = static_cast<int>(blockIdx.x) % a.chunks, item = static_cast<int>(blockIdx.x) / a.chunks;
  int y0 = static_cast<int>(blockIdx.y) * kTileRows, x0 = static_cast<int>(blockIdx.z) * kTileColumns;
  int tx = static_cast<int>(threadIdx.x) % 32 * 4, ty = static_cast<int>(threadIdx.x) / 32 * 4;
  const T* k = head_of<T>(a.k, a.k_at, item / a.heads, item % a.heads);
  const T* v = head_of<T>(a.v, a.v_at, item / a.heads, item % a.heads);
  int end = min(a.n, (chunk + 1) * a.chunk);
  float sums[4][4] = {};
  for (int first = chunk * a.chunk; first < end; first += kTileTokens) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTileTokens * kTileColumns; i += 256) {
      int token = first + i / kTileColumns, column = x0 + i % kTileColumns;
      bool there = token < end && column < a.d;
      k_tile[i / kTileColumns][i % kTileColumns] =
          there ? fmaxf(to_float(k[token * a.k_at.token + column]), 0.0f) : 0.0f;
    }
    for (int i = static_cast<int>(threadIdx.x); i < kTileTokens * kTileRows; i += 256) {
      int token = first + i / kTileRows, row = y0 + i % kTileRows;
      float x = row == a.d ? 1.0f : 0.0f;
      if (token < end && row < a.d) x = to_float(v[token * a.v_at.token + row]);
      v_tile[i / kTileRows][i % kTileRows] = x;
    }
    __syncthreads();
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) {
      float4 x = *reinterpret_cast<const float4*>(&k_tile[t][tx]), y = *reinterpret_cast<const float4*>(&v_tile[t][ty]);
      const float columns[4] = {x.x, x.y, x.z, x.w}, rows[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int e = 0; e < 16; ++e) sums[e / 4][e % 4] = fmaf(rows[e / 4], columns[e % 4], sums[e / 4][e % 4]);
    }
  }
  int64_t state = static_cast<int64_t>(a.d) * (a.d + 1);
  float* part = a.parts + (static_cast<int64_t>(item) * a.chunks + chunk) * state;
#pragma unroll
  for (int e = 0; e < 16; ++e) {
    int row = y0 + ty + e / 4, column = x0 + tx + e % 4;
    if (row <= a.d && column < a.d) part[static_cast<int64_t>(column) * (a.d + 1) + row] = sums[e / 4][e % 4];
  }
}

// A thread has one element of the results of 16 tokens, or their denominators.
template <class T>
__global__ void apply_plain_kernel(const __grid_constant__ LinearArgs a) {
  extern __shared__ __align__(16) unsigned char shared[];
  begin_kernel();
  float* q_tile = reinterpret_cast<float*>(shared);  // [d, 16]
  float* below = q_tile + kTileTokens * a.d;
  int tiles = (a.n + kTileTokens - 1) / kTileTokens, me = static_cast<int>(threadIdx.x);
  int first = static_cast<int>(blockIdx.x) % tiles * kTileTokens, item = static_cast<int>(blockIdx.x) / tiles;
  int batch = item / a.heads, head = item % a.heads;
  const T* q = head_of<T>(a.q, a.q_at, batch, head);
  for (int i = me; i < kTileTokens * a.d; i += static_cast<int>(blockDim.x)) {
    int token = i / a.d, column = i % a.d;
    float x = first + token < a.n ? to_float(q[(first + token) * a.q_at.token + column]) : 0.0f;
    q_tile[column * kTileTokens + token] = fmaxf(x, 0.0f);
  }
  __syncthreads();
  float sums[kTileTokens] = {};
  const float* state = a.states + static_cast<int64_t>(item) * a.d * (a.d + 1) + me;
  for (int j = 0; me <= a.d && j < a.d; ++j) {
    float s = state[static_cast<int64_t>(j) * (a.d + 1)];
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) sums[t] = fmaf(q_tile[j * kTileTokens + t], s, sums[t]);
  }
  if (me == a.d) {
#pragma unroll
    for (int t = 0; t < kTileTokens; ++t) below[t] = sums[t] + a.eps;
  }
  __syncthreads();
  if (me >= a.d) return;
  T* out = static_cast<T*>(a.out) + (static_cast<int64_t>(batch) * a.n * a.heads + head) * a.d + me;
#pragma unroll
  for (int t = 0; t < kTileTokens; ++t) {
    if (first + t < a.n) out[(first + t) * static_cast<int64_t>(a.heads) * a.d] = from_float<T>(sums[t] / below[t]);
  }
}

constexpr int64_t kClusterTokens = 2048;

// Depends on the number of tokens alone: enough blocks to fill a GPU at few tokens, few partial sums at many.
int64_t chunk_of(int64_t tokens) { return tokens <= 2048 ? 192 : tokens <= 8192 ? 256 : 512; }

template <class T>
void run_tensor(const LinearArgs& a, int64_t batch, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(ceil_div(a.heads, kHeads) * a.chunks * batch);
  int64_t count = batch * a.heads * kLinearState;
  start_kernel(sum_chunks_kernel<T>, blocks, kThreads, 0, stream, a);
  start_kernel(add_chunks_kernel, static_cast<unsigned>(ceil_div(count, 256)), 256, 0, stream, a.parts, a.states,
               a.chunks, int64_t{kLinearState}, count);
  start_kernel(apply_kernel<T>, blocks, kThreads, 0, stream, a);
}

template <class T>
void run_plain(const LinearArgs& a, int64_t batch, cudaStream_t stream) {
  int64_t items = batch * a.heads, state = static_cast<int64_t>(a.d) * (a.d + 1), count = items * state;
  dim3 grid(static_cast<unsigned>(items * a.chunks), static_cast<unsigned>(ceil_div(a.d + 1, kTileRows)),
            static_cast<unsigned>(ceil_div(a.d, kTileColumns)));
  start_kernel(sum_chunks_plain_kernel<T>, grid, 256, 0, stream, a);
  start_kernel(add_chunks_kernel, static_cast<unsigned>(ceil_div(count, 256)), 256, 0, stream, a.parts, a.states,
               a.chunks, int64_t{state}, count);
  auto blocks = static_cast<unsigned>(items * ceil_div(a.n, kTileTokens));
  auto threads = static_cast<unsigned>(ceil_div(a.d + 1, 32) * 32);
  size_t shared = static_cast<size_t>(kTileTokens) * static_cast<size_t>(a.d + 1) * sizeof(float);
  start_kernel(apply_plain_kernel<T>, blocks, threads, shared, stream, a);
}

}  // namespace

bool supports_linear_attention(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  return x[3] <= 256 && x[0] * x[1] * x[2] < int64_t{1} << 31;
}

Step make_linear_attention(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  DType dtype = spec.output().dtype;
  LinearArgs a{};
  a.q_at = head_strides(spec, 0), a.k_at = head_strides(spec, 1), a.v_at = head_strides(spec, 2);
  int64_t batch = x[0], chunk = chunk_of(x[1]);
  a.n = static_cast<int>(x[1]), a.heads = static_cast<int>(x[2]), a.d = static_cast<int>(x[3]);
  a.chunk = static_cast<int>(chunk), a.chunks = static_cast<int>(ceil_div(x[1], chunk));
  a.eps = static_cast<float>(spec.node.attrs.real("eps"));
  bool tensor = x[3] == kLinearDim && dtype != DType::f32 && all_multiples(a.q_at, 8) && all_multiples(a.k_at, 4) &&
                all_multiples(a.v_at, 4);
  auto state_bytes = static_cast<size_t>(batch * x[2] * x[3] * (x[3] + 1)) * sizeof(float);
  state_bytes = (state_bytes + 255) / 256 * 256;
  // Of many tokens, the kernels above read long stretches of memory, which takes less time.
  bool clusters = tensor && x[1] <= kClusterTokens && all_multiples(a.k_at, 8) && all_multiples(a.v_at, 8) &&
                  prepare_linear_attention_clusters(dtype);
  Step step;
  step.scratch_bytes = state_bytes * static_cast<size_t>(a.chunks + 1);
  step.run = [=](const StepArgs& args) {
    if (batch * a.n * a.heads * a.d == 0) return;
    LinearArgs now = a;
    now.q = args.in[0], now.k = args.in[1], now.v = args.in[2], now.out = args.out;
    now.states = reinterpret_cast<float*>(args.scratch);
    now.parts = reinterpret_cast<float*>(args.scratch + state_bytes);
    bool aligned = is_aligned(now.q, 16) && is_aligned(now.out, 16) && is_aligned(now.k, 8) && is_aligned(now.v, 8);
    if (clusters && aligned && is_aligned(now.k, 16) && is_aligned(now.v, 16))
      return run_linear_attention_clusters(now, batch, dtype, stream_of(args));
    with_float(dtype, [&](auto zero) {
      using T = decltype(zero);
      if constexpr (sizeof(T) == 2) {
        if (tensor && aligned) return run_tensor<T>(now, batch, stream_of(args));
      }
      run_plain<T>(now, batch, stream_of(args));
    });
  };
  return step;
}

}  // namespace kinora::cuda
