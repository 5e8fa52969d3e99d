// Attention of short sequences with wide heads that share their keys in pairs, as Gemma-2 has them. A block has 16
// queries of two heads, so that there are blocks for all multiprocessors, and keeps the scores of all keys: first the
// keys go by, then each query's softmax is made at once, then the values go by. Of a tile of keys a warp has eight, of
// the values' dimensions 32, so each is read from shared memory once for both heads.
#include "cuda/attention_tiles.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "ops/attention.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kDims = 256, kDimStride = kDims + 8, kOwnDims = kDims / kWarps;
constexpr int kQueries = 16, kHeads = 2, kRows = kQueries * kHeads;
constexpr int kKeys = 64, kTile = kKeys * kDimStride, kStages = 4;  // of a tile; elements; tiles on their way or in use
constexpr float kFar = 1e20f;  // far less than what hides, far more than what scores are
static_assert(kKeys == 8 * kWarps && kRows <= kKeys && kRows == 4 * kWarps);

// What lies behind the tiles in a block's shared memory, for up to `Most` keys.
template <int Most>
struct Scores {
  static constexpr int kStride = Most + 4;  // of a row; in bytes a multiple of 128 and 16 more, for ldmatrix
  float scores[kRows * kStride];            // then, as T from each row's start, weights
  float bias[Most];                         // in units of log 2
  float sums[kRows];                        // of weights
  static_assert(Most % kKeys == 0);
};

// How many keys the block looks at: with a causal mask, those behind the last that any of its queries sees count only
// where a bias may hide all that a query does see. A query that sees no key weighs all alike, hidden ones too.
__device__ inline int keys_that_count(const AttentionArgs& a, const AttentionPlace& p, const float* bias) {
  if (!a.causal) return p.keys;
  SeenKeys first = seen_keys(a, p.first), last = seen_keys(a, min(p.first + kQueries, a.n) - 1);
  int end = min(last.last + 1, p.keys);
  if (a.skip || end == p.keys || !a.bias) return a.skip ? end : p.keys;
  bool seen = false, loud = false;  // a key that all queries see counts; a key that none sees may count
  for (int key = static_cast<int>(threadIdx.x); key < p.keys; key += kThreads) {
    float x = bias[key];
    seen = seen || (key >= last.first && key <= first.last && x >= -kFar);
    loud = loud || (key >= end && !(x <= kFar));
  }
  bool any_seen = __syncthreads_or(seen), any_loud = __syncthreads_or(loud);
  return any_seen && !any_loud ? end : p.keys;
}

// Products of the block's queries with this warp's eight keys of a tile, finished, to `to`: the row of the lane's first
// query, the column of its first key. `queries` are in registers; `keys_at`: this lane's row of the keys.
template <class T, int kStride>
__device__ inline void score_tile(const uint32_t (&queries)[kHeads][kDims / 16][4], uint32_t keys_at,
                                  const AttentionArgs& a, int row, int column, float* to) {
  float s[kHeads][1][1][4] = {}, odd[kHeads][4] = {};  // two sums each: products need not wait for one another
#pragma unroll
  for (int c = 0; c < kDims / 32; ++c) {
    uint32_t keys[4];
    ldmatrix(keys, keys_at + 32 * c * sizeof(T));
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      mma<T>(s[h][0][0], queries[h][2 * c], keys[0], keys[1]);
      mma<T>(odd[h], queries[h][2 * c + 1], keys[2], keys[3]);
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[h][0][0][e] += odd[h][e];
    cap_and_hide(s[h], a, row, column);
    float* at = to + h * kQueries * kStride;
    *reinterpret_cast<float2*>(at) = make_float2(s[h][0][0][0], s[h][0][0][1]);
    *reinterpret_cast<float2*>(at + 8 * kStride) = make_float2(s[h][0][0][2], s[h][0][0][3]);
  }
}

// The scores of the warp's four rows become weights. Eight lanes share a row, four keys of every 32 each.
template <class T, int Most>
__device__ inline void weigh_rows(Scores<Most>& own, int tiles, int keys) {
  int row = static_cast<int>(threadIdx.x) / 8, lane = static_cast<int>(threadIdx.x) % 8;
  float* line = own.scores + row * Scores<Most>::kStride;
  float x[Most / 32][4], top = kNone, sum = 0;
#pragma unroll
  for (int j = 0; j < Most / 32; ++j) {
    if (j >= 2 * tiles) continue;
    int key = 32 * j + 4 * lane;
    float4 s = *reinterpret_cast<const float4*>(line + key), b = *reinterpret_cast<const float4*>(own.bias + key);
    x[j][0] = key < keys ? __fadd_rn(s.x, b.x) : kNone;
    x[j][1] = key + 1 < keys ? __fadd_rn(s.y, b.y) : kNone;
    x[j][2] = key + 2 < keys ? __fadd_rn(s.z, b.z) : kNone;
    x[j][3] = key + 3 < keys ? __fadd_rn(s.w, b.w) : kNone;
    top = fmaxf(top, fmaxf(fmaxf(x[j][0], x[j][1]), fmaxf(x[j][2], x[j][3])));
  }
#pragma unroll
  for (int lanes = 1; lanes < 8; lanes *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lanes));
  float base = top == kNone ? 0.0f : top;
  __syncwarp();  // all lanes have read what weights will lie over
#pragma unroll
  for (int j = 0; j < Most / 32; ++j) {
    if (j >= 2 * tiles) continue;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[j][e] = fast_exp2(x[j][e] - base);
      sum += x[j][e];
    }
    *reinterpret_cast<uint2*>(reinterpret_cast<T*>(line) + 32 * j + 4 * lane) =
        make_uint2(Pair<T>::of(x[j][0], x[j][1]), Pair<T>::of(x[j][2], x[j][3]));
  }
#pragma unroll
  for (int lanes = 1; lanes < 8; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (lane == 0) own.sums[row] = sum;
}

// o += weights · values of a tile; `weights_at`: this lane's row of the first 16 keys' weights, `values_at`: of values.
template <class T, int kStride>
__device__ inline void add_tile(float (&o)[kHeads][1][kOwnDims / 8][4], uint32_t weights_at, uint32_t values_at) {
#pragma unroll
  for (int c = 0; c < kKeys / 16; ++c) {
    uint32_t weights[kHeads][4];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      ldmatrix(weights[h], weights_at + h * kQueries * kStride * sizeof(float) + 16 * c * sizeof(T));
    }
#pragma unroll
    for (int t = 0; t < kOwnDims / 16; ++t) {
      uint32_t values[4];
      ldmatrix_transposed(values, values_at + (16 * c * kDimStride + 16 * t) * sizeof(T));
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        mma<T>(o[h][0][2 * t], weights[h], values[0], values[1]);
        mma<T>(o[h][0][2 * t + 1], weights[h], values[2], values[3]);
      }
    }
  }
}

// At most `Most` keys.
template <class T, int Most>
__global__ void __launch_bounds__(kThreads, 1) short_attention_kernel(const __grid_constant__ AttentionArgs a) {
  constexpr int kStride = Scores<Most>::kStride;
  extern __shared__ __align__(16) unsigned char shared[];
  T* ring = reinterpret_cast<T*>(shared);
  auto& own = *reinterpret_cast<Scores<Most>*>(ring + kStages * kTile);
  begin_kernel();
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  // Of all items the last queries, which see the most keys, begin first.
  auto items = gridDim.x / static_cast<unsigned>(a.tiles);
  int item = static_cast<int>(blockIdx.x % items), pairs = a.heads / kHeads;
  AttentionPlace p{item / pairs, item % pairs * kHeads, (a.tiles - 1 - static_cast<int>(blockIdx.x / items)) * kQueries,
                   keys_of(a, item / pairs)};
  const T* k = head_of<T>(a.k, a.k_at, p.batch, p.head / a.group);
  const T* v = head_of<T>(a.v, a.v_at, p.batch, p.head / a.group);

  T* q_tile = ring + (kStages - 1) * kTile;  // its first tile comes when the queries are in registers
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    load_tile<T, kDims, kQueries, kThreads>(q_tile + h * kQueries * kDimStride,
                                            head_of<T>(a.q, a.q_at, p.batch, p.head + h), a.q_at.token, p.first, a.n,
                                            a);
  }
  load_tile<T, kDims, kKeys, kThreads>(ring, k, a.k_at.token, 0, p.keys, a);
  cp_async_commit();
  const float* bias = a.bias ? a.bias + p.batch * a.bias_batch : nullptr;
  int count = keys_that_count(a, p, bias), tiles = (count + kKeys - 1) / kKeys;
  // All tiles of keys, then all tiles of values; a group of copies each, empty ones at the end.
  auto load = [&](int turn) {
    if (turn < 2 * tiles) {
      bool second = turn >= tiles;
      load_tile<T, kDims, kKeys, kThreads>(ring + turn % kStages * kTile, second ? v : k,
                                           second ? a.v_at.token : a.k_at.token, (second ? turn - tiles : turn) * kKeys,
                                           count, a);
    }
    cp_async_commit();
  };
  for (int turn = 1; turn < kStages - 1; ++turn) load(turn);
  for (int key = static_cast<int>(threadIdx.x); key < Most; key += kThreads) {
    own.bias[key] = bias && key < p.keys ? __fmul_rn(bias[key], kLog2e) : 0.0f;
  }
  cp_async_wait<kStages - 2>();
  __syncthreads();
  uint32_t queries[kHeads][kDims / 16][4];
  uint32_t q_at = shared_address(q_tile + lane % 16 * kDimStride + lane / 16 * 8);
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
#pragma unroll
    for (int c = 0; c < kDims / 16; ++c) {
      ldmatrix(queries[h][c], q_at + (h * kQueries * kDimStride + 16 * c) * sizeof(T));
    }
  }
  // The tile of this turn is there, and everyone is done with the one before, whose place the next to come takes.
  auto take = [&](int turn) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    load(turn + kStages - 1);
    return static_cast<uint32_t>(turn % kStages * kTile * static_cast<int>(sizeof(T)));
  };
  uint32_t k_at = shared_address(ring + (8 * warp + lane % 8) * kDimStride + lane / 8 * 8);
  for (int tile = 0; tile < tiles; ++tile) {
    uint32_t offset = take(tile);
    int column = tile * kKeys + 8 * warp + lane % 4 * 2;
    score_tile<T, kStride>(queries, k_at + offset, a, p.first + lane / 4, column,
                           own.scores + lane / 4 * kStride + column);
  }
  __syncthreads();
  weigh_rows<T>(own, tiles, p.keys);
  float o[kHeads][1][kOwnDims / 8][4] = {};
  int begin = warp * kOwnDims;  // of this warp's dimensions
  uint32_t p_at = shared_address(reinterpret_cast<T*>(own.scores + lane % 16 * kStride) + lane / 16 * 8);
  uint32_t v_at = shared_address(ring + lane % 16 * kDimStride + lane / 16 * 8 + begin);
  for (int tile = 0; tile < tiles; ++tile) {
    uint32_t offset = take(tiles + tile);
    add_tile<T, kStride>(o, p_at + tile * kKeys * static_cast<int>(sizeof(T)), v_at + offset);
  }
  // Through a place that no tile is in any more. A lane of four brings the whole sum.
  T* staged = ring + 2 * tiles % kStages * kTile + begin;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    Softmax<1> soft{};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (lane % 4 == 0) soft.sum[0][half] = own.sums[h * kQueries + lane / 4 + 8 * half];
    }
    AttentionPlace place = p;
    place.head += h;
    write_rows<T, kOwnDims, 1, kDimStride>(o[h], soft, staged + h * kQueries * kDimStride, a, place, p.first, begin);
  }
}

template <class T, int Most>
AttentionPlan plan() {
  return {short_attention_kernel<T, Most>, kQueries, kThreads, kStages * kTile * sizeof(T) + sizeof(Scores<Most>),
          kHeads};
}

template <class T>
AttentionPlan plan_for(int64_t keys) {
  return keys <= 320 ? plan<T, 320>() : plan<T, 640>();
}

}  // namespace

AttentionPlan short_attention_plan(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  DType dtype = spec.output().dtype;
  size_t bias = attention_extras(spec.inputs).bias;
  bool fits = q[3] > 192 && q[3] <= kDims && q[1] <= 640 && k[1] <= 640 && q[2] / k[2] % kHeads == 0;
  if (bias) fits = fits && spec.inputs[bias].shape[1] == 1 && spec.inputs[bias].shape[2] == 1;
  if (!fits || dtype == DType::f32) return {};
  AttentionPlan plan = dtype == DType::bf16 ? plan_for<__nv_bfloat16>(k[1]) : plan_for<__half>(k[1]);
  return plan.shared <= device_limits().shared_bytes ? plan : AttentionPlan{};
}

}  // namespace kinora::cuda
