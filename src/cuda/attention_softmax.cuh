// The softmax of scores that lie as the sums of mma and wgmma do, and the way of a warp's results to memory.
//
// The lane's element e of s[i][t] is query 16·i + lane / 4 + 8·(e / 2) and key 8·t + lane % 4 · 2 + e % 2 of the
// warp's.
#pragma once

#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

namespace kinora::cuda {

constexpr float kLog2e = 1.4426950408889634f;

// Keys from `end` on are not there.
template <int MT, int NT>
__device__ inline void cut_off(float (&s)[MT][NT][4], int column, int end) {
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int t = 0; t < NT; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (column + 8 * t + e % 2 >= end) s[i][t][e] = kNone;
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

// A warp's [16·MT, D] results to its own rows of shared memory, kStride apart.
template <class T, int D, int MT, int kStride = D + 8>
__device__ inline void stage_rows(const float (&o)[MT][D / 8][4], const Softmax<MT>& soft, T* tile) {
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
}

// The same and on to memory, 16 bytes at a time; dimensions from `begin` on.
template <class T, int D, int MT, int kStride = D + 8>
__device__ inline void write_rows(const float (&o)[MT][D / 8][4], const Softmax<MT>& soft, T* tile,
                                  const AttentionArgs& a, const AttentionPlace& p, int first, int begin = 0) {
  constexpr int kPacks = D / 8;
  int lane = static_cast<int>(threadIdx.x) % 32;
  stage_rows<T, D, MT, kStride>(o, soft, tile);
  T* out = static_cast<T*>(a.out) + p.batch * a.out_at.batch + p.head * a.out_at.head;
  int64_t stride = a.out_at.token;
  for (int i = lane; i < 16 * MT * kPacks; i += 32) {
    int row = i / kPacks, column = begin + i % kPacks * 8;
    if (first + row >= a.n || column >= a.d) continue;
    const T* from = tile + row * kStride + i % kPacks * 8;
    T* to = out + (first + row) * stride + column;
    if (a.out_vectors) {
      store_pack(to, load_pack(from));
    } else {
      for (int k = 0; k < 8 && column + k < a.d; ++k) to[k] = from[k];
    }
  }
}

}  // namespace kinora::cuda
