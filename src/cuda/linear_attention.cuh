// What the kernels of linear attention share: arguments, and sums over tokens by the tensor cores, of 16-bit types and
// heads of 32 dimensions.
#pragma once

#include "cuda/heads.h"
#include "cuda/mma.cuh"

namespace kinora::cuda {

// A head's state is Σ over tokens of (v, 1)·relu(k)ᵀ.
constexpr int kLinearDim = 32, kLinearState = (kLinearDim + 1) * kLinearDim;
constexpr int kLinearStep = 16;  // tokens of one product

struct LinearArgs {
  const void *q, *k, *v;
  void* out;      // [batch, n, heads, d]
  float* parts;   // [batch, heads, chunks, state]
  float* states;  // [batch, heads, state]
  HeadStrides q_at, k_at, v_at;
  int n, heads, d, chunk, chunks;
  float eps;
};

// The low halves of two registers, or the high ones.
__device__ inline uint32_t lows(uint32_t x, uint32_t y) { return __byte_perm(x, y, 0x5410); }
__device__ inline uint32_t highs(uint32_t x, uint32_t y) { return __byte_perm(x, y, 0x7632); }

// Lane (g, c) = (lane / 4, lane % 4) reads elements 4g .. 4g + 3 of tokens 4c .. 4c + 3. A product sums over tokens in
// any order and its rows and columns may stand for any elements, so the lane's rows of A and columns of B are those
// four: row g of product i is element 4g + 2i of v, row g + 8 is 4g + 2i + 1; column g of product j is 4g + j of k.
struct Tokens {
  uint2 k[4], v[4];
};

// A lane's part of the state: sums of values · keys, as products give them, and of its four elements of the keys.
struct TokenSums {
  float products[2][4][4] = {};
  float keys[4] = {};

  template <class T>
  __device__ void add(Tokens& t) {
#pragma unroll
    for (int u = 0; u < 4; ++u) {
      t.k[u] = make_uint2(Pair<T>::relu(t.k[u].x), Pair<T>::relu(t.k[u].y));
      float2 low = Pair<T>::floats(t.k[u].x), high = Pair<T>::floats(t.k[u].y);
      keys[0] += low.x;
      keys[1] += low.y;
      keys[2] += high.x;
      keys[3] += high.y;
    }
    const uint32_t values[2][4] = {{lows(t.v[0].x, t.v[1].x), highs(t.v[0].x, t.v[1].x),  //
                                    lows(t.v[2].x, t.v[3].x), highs(t.v[2].x, t.v[3].x)},
                                   {lows(t.v[0].y, t.v[1].y), highs(t.v[0].y, t.v[1].y),  //
                                    lows(t.v[2].y, t.v[3].y), highs(t.v[2].y, t.v[3].y)}};
    const uint32_t columns[4][2] = {{lows(t.k[0].x, t.k[1].x), lows(t.k[2].x, t.k[3].x)},
                                    {highs(t.k[0].x, t.k[1].x), highs(t.k[2].x, t.k[3].x)},
                                    {lows(t.k[0].y, t.k[1].y), lows(t.k[2].y, t.k[3].y)},
                                    {highs(t.k[0].y, t.k[1].y), highs(t.k[2].y, t.k[3].y)}};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      mma<T>(products[0][j], values[0], columns[j][0], columns[j][1]);
      mma<T>(products[1][j], values[1], columns[j][0], columns[j][1]);
    }
  }

  // The warp's state, row by row.
  __device__ void store(float* state) {
    int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, c = lane % 4;
    // Column 2c + e of product j is element 4·(2c + e) + j of k.
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int from = i % 2 * 2 + e;
        const auto& sums = products[i / 2];
        *reinterpret_cast<float4*>(state + (4 * g + i) * kLinearDim + 8 * c + 4 * e) =
            make_float4(sums[0][from], sums[1][from], sums[2][from], sums[3][from]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // over the lanes with other tokens
      keys[i] += __shfl_xor_sync(0xffffffffu, keys[i], 1);
      keys[i] += __shfl_xor_sync(0xffffffffu, keys[i], 2);
    }
    if (c == 0) {
      *reinterpret_cast<float4*>(state + kLinearDim * kLinearDim + 4 * g) =
          make_float4(keys[0], keys[1], keys[2], keys[3]);
    }
  }
};

// linear_attention_clusters.cu: with 16-bit types, heads of 32 dimensions, all rows 16-byte aligned. False where
// clusters do not run.
bool prepare_linear_attention_clusters(DType dtype);
void run_linear_attention_clusters(const LinearArgs& a, int64_t batch, DType dtype, cudaStream_t stream);

}  // namespace kinora::cuda
