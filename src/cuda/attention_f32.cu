// Attention in float32 throughout, for exactness; see attention.cu.
#include "cuda/attention.cuh"
#include "cuda/launch.cuh"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256, kKeys = 32;

// Rows first .. first + kRows of a head, as [kRows, 32·DC + 4] with zeros past the last row and past d.
template <int DC, int kRows>
__device__ inline void load_plain(float* tile, const float* rows, int64_t stride, int first, int count, int d) {
  for (int i = static_cast<int>(threadIdx.x); i < kRows * 32 * DC; i += kThreads) {
    int row = i / (32 * DC), column = i % (32 * DC);
    bool there = first + row < count && column < d;
    tile[row * (32 * DC + 4) + column] = there ? rows[(first + row) * stride + column] : 0.0f;
  }
}

// 32·R queries by tiles of 32 keys; eight lanes share a query, so a thread has R queries, of each four keys' scores
// (every eighth) and 4·DC results.
template <int DC, int R>
__global__ void __launch_bounds__(kThreads) attention_f32_kernel(const __grid_constant__ AttentionArgs a) {
  constexpr int kRows = 32 * R, kStride = 32 * DC + 4, kWeights = kKeys + 4;
  extern __shared__ __align__(16) unsigned char shared[];
  begin_kernel();
  float* q_tile = reinterpret_cast<float*>(shared);
  float *tile = q_tile + kRows * kStride, *weights = tile + kKeys * kStride;
  int tx = static_cast<int>(threadIdx.x) % 8, ty = static_cast<int>(threadIdx.x) / 8;
  AttentionPlace p = attention_place(a, kRows);
  const float* k = head_of<float>(a.k, a.k_at, p.batch, p.head / a.group);
  const float* v = head_of<float>(a.v, a.v_at, p.batch, p.head / a.group);
  int2 range = key_tiles(a, p, kRows, kKeys);
  load_plain<DC, kRows>(q_tile, head_of<float>(a.q, a.q_at, p.batch, p.head), a.q_at.token, p.first, a.n, a.d);
  float o[R][DC][4] = {}, top[R], sum[R];
#pragma unroll
  for (int r = 0; r < R; ++r) top[r] = kNone, sum[r] = 0;

  for (int j = range.x; j < range.y; ++j) {
    __syncthreads();
    load_plain<DC, kKeys>(tile, k, a.k_at.token, j * kKeys, p.keys, a.d);
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
      SeenKeys seen = seen_keys(a, query);
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        int key = j * kKeys + tx + 8 * t;
        s[r][t] *= a.scale;
        if (a.softcap > 0) s[r][t] = a.softcap * tanhf(s[r][t] / a.softcap);
        if (a.causal && seen.hides(key)) s[r][t] = kHidden;
        if (a.bias && key < p.keys) s[r][t] += bias_row(a, p, query)[key];
        if (key >= p.keys) s[r][t] = kNone;
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
    load_plain<DC, kKeys>(tile, v, a.v_at.token, j * kKeys, p.keys, a.d);
    __syncthreads();
#pragma unroll 4
    for (int key = 0; key < kKeys; ++key) {
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
    float* out =
        static_cast<float*>(a.out) + p.batch * a.out_at.batch + query * a.out_at.token + p.head * a.out_at.head;
#pragma unroll
    for (int c = 0; c < 4 * DC; ++c) {
      int column = c / 4 * 32 + 4 * tx + c % 4;
      if (column < a.d) out[column] = o[r][c / 4][c % 4] / sum[r];
    }
  }
}

template <int DC, int R>
AttentionPlan plan() {
  return {attention_f32_kernel<DC, R>, 32 * R, kThreads,
          static_cast<size_t>((32 * R + kKeys) * (32 * DC + 4) + 32 * R * (kKeys + 4)) * 4};
}

}  // namespace

AttentionPlan f32_attention_plan(int64_t d) {
  if (d <= 32) return plan<1, 2>();
  if (d <= 64) return plan<2, 2>();
  if (d <= 96) return plan<3, 2>();
  if (d <= 128) return plan<4, 2>();
  if (d <= 192) return plan<6, 1>();
  return d <= 256 ? plan<8, 1>() : plan<16, 1>();
}

}  // namespace kinora::cuda
