// Attention in one kernel: a block owns some queries of one head and walks over the keys, tile by tile, keeping the
// running maximum and sum of each query's softmax (Dao, FlashAttention-2, arXiv 2307.08691). 16-bit types use the
// tensor cores; float32 is computed in float32.
#include <limits>

#include "cuda/heads.h"
#include "cuda/kernels.h"
#include "cuda/mma.cuh"

namespace kinora::cuda {
namespace {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kHidden = -1e30f;  // the score of a key that causality or the window hides
constexpr float kNone = -std::numeric_limits<float>::infinity();
constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kPlainThreads = 256, kPlainKeys = 32;

struct AttentionArgs {
  const void *q, *k, *v;
  const float* bias;  // or null
  void* out;          // [batch, n, heads, d]
  HeadStrides q_at, k_at, v_at;
  int64_t bias_batch, bias_head, bias_query;
  int n, m, d, heads, group, tiles;
  int window;
  float scale, softcap;
  bool causal;
  bool skip;         // tiles of hidden keys alone change nothing
  bool vectors;      // q, k and v can be read 16 bytes at a time
  bool out_vectors;  // so can the result be written
};

struct Place {
  int batch, head, first;  // first query of this block
};

__device__ inline Place place_of(const AttentionArgs& a, int rows) {
  int item = static_cast<int>(blockIdx.x / static_cast<unsigned>(a.tiles));
  int tile = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.tiles));
  return {item / a.heads, item % a.heads, tile * rows};
}

template <class T>
__device__ inline const T* head_of(const void* base, const HeadStrides& at, int batch, int head) {
  return static_cast<const T*>(base) + batch * at.batch + head * at.head;
}

// The tiles of keys [begin, end) that queries first .. first + rows look at.
__device__ inline int2 key_tiles(const AttentionArgs& a, int first, int rows, int keys) {
  int begin = 0, end = (a.m + keys - 1) / keys;
  if (a.skip) {
    end = min(end, (min(first + rows, a.n) - 1) / keys + 1);
    if (a.window > 0) begin = max(0, first - a.window + 1) / keys;
  }
  return {begin, end};
}

__device__ inline bool hidden(const AttentionArgs& a, int query, int key) {
  return key > query || (a.window > 0 && key <= query - a.window);
}

__device__ inline const float* bias_row(const AttentionArgs& a, const Place& p, int query) {
  return a.bias + p.batch * a.bias_batch + p.head * a.bias_head + min(query, a.n - 1) * a.bias_query;
}

// Rows first .. first + kRows of a head, as [kRows, D + 8] with zeros past the last row and past d. A row's 16-byte
// pieces are odd in number, so that the eight rows of an ldmatrix fall into different banks.
template <class T, int D, int kRows>
__device__ inline void load_tile(T* tile, const T* rows, int64_t stride, int first, int count, const AttentionArgs& a) {
  constexpr int kStride = D + 8, kLanes = D <= 32 ? 4 : D <= 64 ? 8 : D <= 128 ? 16 : 32, kStep = kThreads / kLanes;
  if (a.vectors) {
    int row = static_cast<int>(threadIdx.x) / kLanes, column = static_cast<int>(threadIdx.x) % kLanes * 8;
    if (D < 8 * kLanes && column >= D) return;
    int left = column < a.d ? count - first - row : 0;
    const T* from = rows + (first + row) * stride + column;
    uint32_t to = shared_address(tile + row * kStride + column);
#pragma unroll
    for (int i = 0; i < kRows; i += kStep) {
      cp_async(to + i * kStride * sizeof(T), i < left ? from : rows, i < left);
      from += kStep * stride;
    }
  } else {
    for (int i = static_cast<int>(threadIdx.x); i < kRows * D; i += kThreads) {
      int row = i / D, column = i % D;
      bool there = first + row < count && column < a.d;
      tile[row * kStride + column] = there ? rows[(first + row) * stride + column] : from_float<T>(0.0f);
    }
  }
}

// 1 - 2 / (e^2x + 1), to about 2^-21 of 1.
__device__ inline float fast_tanh(float x) { return 1.0f - __fdividef(2.0f, 1.0f + fast_exp2(2.0f * kLog2e * x)); }

// From products q·k to scores in units of log 2, with soft cap, mask and bias. The lane's element e of s[i][t] is
// query row + 16·i + 8·(e / 2) and key column + 8·t + e % 2.
template <int MT, int NT>
__device__ inline void finish_scores(float (&s)[MT][NT][4], const AttentionArgs& a, const Place& p, int row,
                                     int column) {
  bool capped = a.softcap > 0;
  float inner = capped ? a.scale / a.softcap : a.scale * kLog2e, outer = a.softcap * kLog2e;
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int t = 0; t < NT; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[i][t][e] *= inner;
        if (capped) s[i][t][e] = outer * fast_tanh(s[i][t][e]);
      }
    }
  }
  if (a.causal) {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int t = 0; t < NT; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (hidden(a, row + 16 * i + e / 2 * 8, column + 8 * t + e % 2)) s[i][t][e] = __fmul_rn(kHidden, kLog2e);
        }
      }
    }
  }
  if (!a.bias) return;
  if (a.bias_query == 0) {  // one value for all of the lane's queries
    const float* bias = bias_row(a, p, 0);
#pragma unroll
    for (int t = 0; t < NT; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        int key = column + 8 * t + e;
        float x = key < a.m ? __fmul_rn(__ldg(bias + key), kLog2e) : 0.0f;
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          s[i][t][e] = __fadd_rn(s[i][t][e], x);
          s[i][t][e + 2] = __fadd_rn(s[i][t][e + 2], x);
        }
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* bias = bias_row(a, p, row + 16 * i + 8 * half);
#pragma unroll
      for (int t = 0; t < NT; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          int key = column + 8 * t + e;
          float x = key < a.m ? __fmul_rn(__ldg(bias + key), kLog2e) : 0.0f;
          s[i][t][2 * half + e] = __fadd_rn(s[i][t][2 * half + e], x);
        }
      }
    }
  }
}

// The running softmax of the lane's queries 16·i + 8·half: the largest score so far and this lane's part of the sum.
template <int MT>
struct Softmax {
  float top[MT][2], sum[MT][2];
};

// Turns scores (in units of log2(e)·unit) into weights 2^(score - top) and rescales what was summed before.
template <int MT, int NT, int DT>
__device__ inline void weigh(float (&s)[MT][NT][4], float (&o)[MT][DT][4], Softmax<MT>& soft, float unit) {
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int e = 2 * half;
      float top = soft.top[i][half];
#pragma unroll
      for (int t = 0; t < NT; ++t) top = fmaxf(top, fmaxf(s[i][t][e], s[i][t][e + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      float base = top == kNone ? 0.0f : __fmul_rn(top, unit);
      float keep = fast_exp2(__fmul_rn(soft.top[i][half], unit) - base), sum = soft.sum[i][half] * keep;
      soft.top[i][half] = top;
#pragma unroll
      for (int t = 0; t < NT; ++t) {
        s[i][t][e] = fast_exp2(fmaf(s[i][t][e], unit, -base));
        s[i][t][e + 1] = fast_exp2(fmaf(s[i][t][e + 1], unit, -base));
        sum += s[i][t][e] + s[i][t][e + 1];
      }
      soft.sum[i][half] = sum;
#pragma unroll
      for (int t = 0; t < DT; ++t) {
        o[i][t][e] *= keep;
        o[i][t][e + 1] *= keep;
      }
    }
  }
}

// A warp's [16·MT, d] results, through its own rows of shared memory so that they leave 16 bytes at a time.
template <class T, int D, int MT>
__device__ inline void write_rows(float (&o)[MT][D / 8][4], Softmax<MT>& soft, T* tile, const AttentionArgs& a,
                                  const Place& p, int first) {
  constexpr int kStride = D + 8, kPacks = D / 8;
  int lane = static_cast<int>(threadIdx.x) % 32;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = soft.sum[i][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      float factor = 1.0f / sum;
      T* row = tile + (16 * i + 8 * half + lane / 4) * kStride + lane % 4 * 2;
#pragma unroll
      for (int t = 0; t < D / 8; ++t) {
        *reinterpret_cast<uint32_t*>(row + 8 * t) =
            Pair<T>::of(o[i][t][2 * half] * factor, o[i][t][2 * half + 1] * factor);
      }
    }
  }
  __syncwarp();
  T* out = static_cast<T*>(a.out) + (static_cast<int64_t>(p.batch) * a.n * a.heads + p.head) * a.d;
  int64_t stride = static_cast<int64_t>(a.heads) * a.d;
  for (int i = lane; i < 16 * MT * kPacks; i += 32) {
    int row = i / kPacks, column = i % kPacks * 8;
    if (first + row >= a.n || column >= a.d) continue;
    const T* from = tile + row * kStride + column;
    T* to = out + (first + row) * stride + column;
    if (a.out_vectors) {
      store_pack(to, load_pack(from));
    } else {
      for (int k = 0; k < 8 && column + k < a.d; ++k) to[k] = from[k];
    }
  }
}

// Four warps of 16·MT queries each; tiles of BN keys, the next one on its way while one is worked on.
template <class T, int D, int MT, int BN>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(const __grid_constant__ AttentionArgs a) {
  constexpr int kRows = 16 * MT * kWarps, kStride = D + 8, kTile = BN * kStride;
  constexpr bool kKeep = MT * D <= 160;  // the queries stay in registers
  extern __shared__ __align__(16) unsigned char shared[];
  T *q_tile = reinterpret_cast<T*>(shared), *kv_tiles = q_tile + kRows * kStride;
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Place p = place_of(a, kRows);
  const T* q = head_of<T>(a.q, a.q_at, p.batch, p.head);
  const T* k = head_of<T>(a.k, a.k_at, p.batch, p.head / a.group);
  const T* v = head_of<T>(a.v, a.v_at, p.batch, p.head / a.group);
  int2 range = key_tiles(a, p.first, kRows, BN);
  bool plain = !a.bias && !a.causal && a.softcap <= 0 && a.scale > 0;
  float unit = plain ? a.scale * kLog2e : 1.0f;

  auto load_keys = [&](int tile) {
    T* to = kv_tiles + (tile - range.x) % 2 * 2 * kTile;
    load_tile<T, D, BN>(to, k, a.k_at.token, tile * BN, a.m, a);
    load_tile<T, D, BN>(to + kTile, v, a.v_at.token, tile * BN, a.m, a);
    cp_async_commit();
  };
  load_tile<T, D, kRows>(q_tile, q, a.q_at.token, p.first, a.n, a);
  load_keys(range.x);

  // Addresses of this lane's rows for ldmatrix: of Q as A, of K as B, of V as B transposed.
  T* own = q_tile + warp * 16 * MT * kStride;
  uint32_t q_at = shared_address(own + lane % 16 * kStride + lane / 16 * 8);
  uint32_t k_at = shared_address(kv_tiles + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
  uint32_t v_at = shared_address(kv_tiles + kTile + lane % 16 * kStride + lane / 16 * 8);
  uint32_t kept[kKeep ? MT : 1][kKeep ? D / 16 : 1][4];
  float o[MT][D / 8][4] = {};
  Softmax<MT> soft;
#pragma unroll
  for (int i = 0; i < 2 * MT; ++i) soft.top[i / 2][i % 2] = kNone, soft.sum[i / 2][i % 2] = 0;

  for (int tile = range.x; tile < range.y; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // the tile is there, and everyone is done with the one before
    if (tile + 1 < range.y) load_keys(tile + 1);
    auto offset = static_cast<uint32_t>((tile - range.x) % 2 * 2 * kTile * static_cast<int>(sizeof(T)));
    if constexpr (kKeep) {
      if (tile == range.x) {
#pragma unroll
        for (int i = 0; i < MT; ++i) {
#pragma unroll
          for (int c = 0; c < D / 16; ++c) ldmatrix(kept[i][c], q_at + (16 * i * kStride + 16 * c) * sizeof(T));
        }
      }
    }
    float s[MT][BN / 8][4] = {};
#pragma unroll
    for (int c = 0; c < D / 16; ++c) {
      uint32_t queries[MT][4];
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        if constexpr (kKeep) {
#pragma unroll
          for (int e = 0; e < 4; ++e) queries[i][e] = kept[i][c][e];
        } else {
          ldmatrix(queries[i], q_at + (16 * i * kStride + 16 * c) * sizeof(T));
        }
      }
#pragma unroll
      for (int t = 0; t < BN / 16; ++t) {
        uint32_t keys[4];
        ldmatrix(keys, k_at + offset + (16 * t * kStride + 16 * c) * sizeof(T));
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          mma<T>(s[i][2 * t], queries[i], keys[0], keys[1]);
          mma<T>(s[i][2 * t + 1], queries[i], keys[2], keys[3]);
        }
      }
    }
    int row = p.first + warp * 16 * MT + lane / 4, column = tile * BN + lane % 4 * 2;
    if (!plain) finish_scores(s, a, p, row, column);
    if ((tile + 1) * BN > a.m) {
#pragma unroll
      for (int i = 0; i < MT; ++i) {
#pragma unroll
        for (int t = 0; t < BN / 8; ++t) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (column + 8 * t + e % 2 >= a.m) s[i][t][e] = kNone;
          }
        }
      }
    }
    weigh(s, o, soft, unit);
#pragma unroll
    for (int c = 0; c < BN / 16; ++c) {
      uint32_t weights[MT][4];
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        weights[i][0] = Pair<T>::of(s[i][2 * c][0], s[i][2 * c][1]);
        weights[i][1] = Pair<T>::of(s[i][2 * c][2], s[i][2 * c][3]);
        weights[i][2] = Pair<T>::of(s[i][2 * c + 1][0], s[i][2 * c + 1][1]);
        weights[i][3] = Pair<T>::of(s[i][2 * c + 1][2], s[i][2 * c + 1][3]);
      }
#pragma unroll
      for (int t = 0; t < D / 16; ++t) {
        uint32_t values[4];
        ldmatrix_transposed(values, v_at + offset + (16 * c * kStride + 16 * t) * sizeof(T));
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          mma<T>(o[i][2 * t], weights[i], values[0], values[1]);
          mma<T>(o[i][2 * t + 1], weights[i], values[2], values[3]);
        }
      }
    }
  }
  write_rows<T, D, MT>(o, soft, own, a, p, p.first + warp * 16 * MT);
}

// Float32: [kRows, 32·DC + 4] with zeros past the last row and past d.
template <int DC, int kRows>
__device__ inline void load_plain(float* tile, const float* rows, int64_t stride, int first, int count, int d) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * 32 * DC; i += kPlainThreads) {
    int row = i / (32 * DC), column = i % (32 * DC);
    bool there = first + row < count && column < d;
    tile[row * (32 * DC + 4) + column] = there ? rows[(first + row) * stride + column] : 0.0f;
  }
}

// 32·R queries by tiles of 32 keys; eight lanes share a query, so a thread has R queries, of each four keys' scores
// (every eighth) and 4·DC results.
template <int DC, int R>
__global__ void __launch_bounds__(kPlainThreads) attention_f32_kernel(const __grid_constant__ AttentionArgs a) {
  constexpr int kRows = 32 * R, kStride = 32 * DC + 4, kWeights = kPlainKeys + 4;
  extern __shared__ __align__(16) unsigned char shared[];
  float* q_tile = reinterpret_cast<float*>(shared);
  float *tile = q_tile + kRows * kStride, *weights = tile + kPlainKeys * kStride;
  int tx = static_cast<int>(threadIdx.x) % 8, ty = static_cast<int>(threadIdx.x) / 8;
  Place p = place_of(a, kRows);
  const float* k = head_of<float>(a.k, a.k_at, p.batch, p.head / a.group);
  const float* v = head_of<float>(a.v, a.v_at, p.batch, p.head / a.group);
  int2 range = key_tiles(a, p.first, kRows, kPlainKeys);
  load_plain<DC, kRows>(q_tile, head_of<float>(a.q, a.q_at, p.batch, p.head), a.q_at.token, p.first, a.n, a.d);
  float o[R][DC][4] = {}, top[R], sum[R];
#pragma unroll
  for (int r = 0; r < R; ++r) top[r] = kNone, sum[r] = 0;

  for (int j = range.x; j < range.y; ++j) {
    __syncthreads();
    load_plain<DC, kPlainKeys>(tile, k, a.k_at.token, j * kPlainKeys, a.m, a.d);
    __syncthreads();
    float s[R][4] = {};
#pragma unroll 4
    for (int c = 0; c < 8 * DC; ++c) {
      float4 y[4];
#pragma unroll
      for (int t = 0; t < 4; ++t) y[t] = *reinterpret_cast<const float4*>(tile + (tx + 8 * t) * kStride + 4 * c);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float4 x = *reinterpret_cast<const float4*>(q_tile + (ty + 32 * r) * kStride + 4 * c);
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          s[r][t] = fmaf(x.x, y[t].x, fmaf(x.y, y[t].y, fmaf(x.z, y[t].z, fmaf(x.w, y[t].w, s[r][t]))));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      int query = p.first + ty + 32 * r;
      float best = top[r];
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        int key = j * kPlainKeys + tx + 8 * t;
        s[r][t] *= a.scale;
        if (a.softcap > 0) s[r][t] = a.softcap * tanhf(s[r][t] / a.softcap);
        if (a.causal && hidden(a, query, key)) s[r][t] = kHidden;
        if (a.bias && key < a.m) s[r][t] += bias_row(a, p, query)[key];
        if (key >= a.m) s[r][t] = kNone;
        best = fmaxf(best, s[r][t]);
      }
      for (int lanes = 1; lanes < 8; lanes *= 2) best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, lanes));
      float base = best == kNone ? 0.0f : best, keep = expf(top[r] - base);
      top[r] = best;
      sum[r] *= keep;
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        float weight = expf(s[r][t] - base);
        sum[r] += weight;
        weights[(ty + 32 * r) * kWeights + tx + 8 * t] = weight;
      }
#pragma unroll
      for (int c = 0; c < 4 * DC; ++c) o[r][c / 4][c % 4] *= keep;
    }
    __syncthreads();
    load_plain<DC, kPlainKeys>(tile, v, a.v_at.token, j * kPlainKeys, a.m, a.d);
    __syncthreads();
#pragma unroll 4
    for (int key = 0; key < kPlainKeys; ++key) {
      float weight[R];
#pragma unroll
      for (int r = 0; r < R; ++r) weight[r] = weights[(ty + 32 * r) * kWeights + key];
#pragma unroll
      for (int c = 0; c < DC; ++c) {
        float4 y = *reinterpret_cast<const float4*>(tile + key * kStride + 32 * c + 4 * tx);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          o[r][c][0] = fmaf(weight[r], y.x, o[r][c][0]);
          o[r][c][1] = fmaf(weight[r], y.y, o[r][c][1]);
          o[r][c][2] = fmaf(weight[r], y.z, o[r][c][2]);
          o[r][c][3] = fmaf(weight[r], y.w, o[r][c][3]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    for (int lanes = 1; lanes < 8; lanes *= 2) sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], lanes);
    int query = p.first + ty + 32 * r;
    if (query >= a.n) continue;
    float* out = static_cast<float*>(a.out) + ((static_cast<int64_t>(p.batch) * a.n + query) * a.heads + p.head) * a.d;
#pragma unroll
    for (int c = 0; c < 4 * DC; ++c) {
      int column = c / 4 * 32 + 4 * tx + c % 4;
      if (column < a.d) out[column] = o[r][c / 4][c % 4] / sum[r];
    }
  }
}

struct Plan {
  void (*kernel)(AttentionArgs);
  int rows, threads;  // queries of a block
  size_t shared;
};

template <class T, int D, int MT, int BN>
Plan tensor_plan() {
  return {attention_kernel<T, D, MT, BN>, 16 * MT * kWarps, kThreads,
          static_cast<size_t>(16 * MT * kWarps + 4 * BN) * (D + 8) * sizeof(T)};
}

template <int DC, int R>
Plan plain_plan() {
  return {attention_f32_kernel<DC, R>, 32 * R, kPlainThreads,
          static_cast<size_t>((32 * R + kPlainKeys) * (32 * DC + 4) + 32 * R * (kPlainKeys + 4)) * 4};
}

// 32 queries a warp halve the traffic from shared memory to the tensor cores; above 128 dimensions the sums leave no
// registers for that.
template <class T>
Plan plan_for(int64_t d, size_t shared_limit) {
  if (d <= 32) return tensor_plan<T, 32, 2, 64>();
  if (d <= 64) return tensor_plan<T, 64, 2, 64>();
  if (d <= 80) return tensor_plan<T, 80, 2, 64>();
  if (d <= 112) return tensor_plan<T, 112, 2, 64>();
  if (d <= 128) {
    Plan plan = tensor_plan<T, 128, 2, 64>();
    return plan.shared <= shared_limit ? plan : tensor_plan<T, 128, 1, 64>();
  }
  if (d <= 192) return tensor_plan<T, 192, 1, 32>();
  return tensor_plan<T, 256, 1, 32>();
}

template <>
Plan plan_for<float>(int64_t d, size_t) {
  if (d <= 32) return plain_plan<1, 2>();
  if (d <= 64) return plain_plan<2, 2>();
  if (d <= 96) return plain_plan<3, 2>();
  if (d <= 128) return plain_plan<4, 2>();
  return d <= 192 ? plain_plan<6, 1>() : plain_plan<8, 1>();
}

Plan plan_for(const StepSpec& spec) {
  int64_t d = spec.inputs[0].shape[3];
  return with_float(spec.output().dtype,
                    [&](auto zero) { return plan_for<decltype(zero)>(d, device_limits().shared_bytes); });
}

// The bias broadcasts to [batch, heads, queries, keys]; of rank 2 it is [batch, keys].
void place_bias(const StepSpec& spec, AttentionArgs& a) {
  const Shape& shape = spec.inputs[3].shape;
  Ints strides = strides_of(spec, 3);
  auto at = [&](int axis) { return shape[axis] == 1 ? 0 : strides[static_cast<size_t>(axis)]; };
  a.bias_batch = at(0);
  a.bias_head = shape.rank() == 4 ? at(1) : 0;
  a.bias_query = shape.rank() == 4 ? at(2) : 0;
}

}  // namespace

bool supports_attention(const StepSpec& spec) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() / 2;
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  if (q[3] > 256 || q[1] > kMost || k[1] > kMost || k[1] < 1) return false;
  Plan plan = plan_for(spec);
  return plan.shared <= device_limits().shared_bytes && q[0] * q[2] * ceil_div(q[1], plan.rows) <= kMost;
}

Step make_attention(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  const Attrs& attrs = spec.node.attrs;
  Plan plan = plan_for(spec);
  AttentionArgs a{};
  a.q_at = head_strides(spec, 0), a.k_at = head_strides(spec, 1), a.v_at = head_strides(spec, 2);
  bool biased = spec.inputs.size() == 4;
  if (biased) place_bias(spec, a);
  a.n = static_cast<int>(q[1]), a.m = static_cast<int>(k[1]), a.d = static_cast<int>(q[3]);
  a.heads = static_cast<int>(q[2]), a.group = static_cast<int>(q[2] / k[2]);
  a.tiles = static_cast<int>(ceil_div(q[1], plan.rows));
  a.window = static_cast<int>(std::min(attrs.integer("window"), q[1] + k[1]));
  a.scale = static_cast<float>(attrs.real("scale")), a.softcap = static_cast<float>(attrs.real("softcap"));
  a.causal = attrs.integer("causal") != 0;
  // A query that sees no key at all weighs all keys alike, hidden ones too; a bias can bring that about.
  a.skip = a.causal && !biased && (a.window == 0 || q[1] - a.window < k[1]);
  auto per_pack = static_cast<int64_t>(16 / dtype_size(spec.output().dtype));
  bool vectors = q[3] % per_pack == 0;
  a.out_vectors = vectors;
  for (const HeadStrides& at : {a.q_at, a.k_at, a.v_at}) vectors = vectors && all_multiples(at, per_pack);
  int64_t blocks = q[0] * q[2] * a.tiles;
  if (plan.shared > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(plan.kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(plan.shared)));
  }
  Step step;
  step.run = [=](const StepArgs& args) {
    if (blocks == 0) return;
    AttentionArgs now = a;
    now.q = args.in[0], now.k = args.in[1], now.v = args.in[2], now.out = args.out;
    now.bias = biased ? static_cast<const float*>(args.in[3]) : nullptr;
    now.vectors = vectors && is_aligned(now.q, 16) && is_aligned(now.k, 16) && is_aligned(now.v, 16);
    now.out_vectors = a.out_vectors && is_aligned(now.out, 16);
    plan.kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(plan.threads), plan.shared, stream_of(args)>>>(
        now);
    check(cudaGetLastError());
  };
  return step;
}

}  // namespace kinora::cuda
