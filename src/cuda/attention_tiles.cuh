// What attention by mma is made of, besides the softmax: tiles of heads in shared memory, scores from products.
#pragma once

#include "cuda/attention_softmax.cuh"

namespace kinora::cuda {

// Rows first .. first + kRows of a head, as [kRows, D + 8] with zeros past the last row and past d. A row's 16-byte
// pieces are odd in number, so that the eight rows of an ldmatrix fall into different banks.
template <class T, int D, int kRows, int kBlock>
__device__ inline void load_tile(T* tile, const T* rows, int64_t stride, int first, int count, const AttentionArgs& a) {
  constexpr int kStride = D + 8, kLanes = D <= 32 ? 4 : D <= 64 ? 8 : D <= 128 ? 16 : D <= 256 ? 32 : 64;
  constexpr int kStep = kBlock / kLanes;
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
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kRows * D; i += kBlock) {
      int row = i / D, column = i % D;
      bool there = first + row < count && column < a.d;
      tile[row * kStride + column] = there ? rows[(first + row) * stride + column] : from_float<T>(0.0f);
    }
  }
}

// 1 - 2 / (e^2x + 1), to about 2^-21 of 1.
__device__ inline float fast_tanh(float x) { return 1.0f - __fdividef(2.0f, 1.0f + fast_exp2(2.0f * kLog2e * x)); }

// From products q·k to scores in units of log 2, with soft cap and causal mask. The lane's element e of s[i][t] is
// query row + 16·i + 8·(e / 2) and key column + 8·t + e % 2.
template <int MT, int NT>
__device__ inline void cap_and_hide(float (&s)[MT][NT][4], const AttentionArgs& a, int row, int column) {
  bool capped = a.softcap > 0;
  float inner = capped ? a.scale / a.softcap : a.scale * kLog2e, outer = a.softcap * kLog2e;
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int t = 0; t < NT; ++t) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[i][t][e] *= inner;
      }
    }
  }
  if (capped) {
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int t = 0; t < NT; ++t) {
#pragma unroll
        for (int e = 0; e < 4; ++e) s[i][t][e] = outer * fast_tanh(s[i][t][e]);
      }
    }
  }
  if (a.causal) {
#pragma unroll
    for (int i = 0; i < 2 * MT; ++i) {
      SeenKeys seen = seen_keys(a, row + 8 * i);
#pragma unroll
      for (int t = 0; t < NT; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (seen.hides(column + 8 * t + e)) s[i / 2][t][i % 2 * 2 + e] = __fmul_rn(kHidden, kLog2e);
        }
      }
    }
  }
}

}  // namespace kinora::cuda
