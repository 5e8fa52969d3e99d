// What a thread does to neighbouring columns of a product's row. Operations are rounded one by one, so that every
// kernel gives the same bits.
#pragma once

#include "cuda/activation.cuh"
#include "cuda/product_finish.h"

namespace kinora::cuda {

template <int V>
struct Finishing {
  bool scaled = false, biased = false, gated = false, added = false;
  float row_scale, column_scale[V], bias[V], gate[V], residual[V];
};

template <class T, Act kAct, int V>
__device__ inline void activate_values(float (&y)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) y[v] = activate<T>(y[v], kAct);
}

// y becomes residual + gate·act(y·row scale·column scale + bias), to be rounded to T.
template <class T, int V>
__device__ inline void finish_values(float (&y)[V], const Finishing<V>& with, Act act) {
  if (with.scaled) {
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = __fmul_rn(__fmul_rn(y[v], with.row_scale), with.column_scale[v]);
  }
  if (with.biased) {
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = __fadd_rn(y[v], with.bias[v]);
  }
  switch (act) {
    case Act::none: break;
    case Act::relu: activate_values<T, Act::relu>(y); break;
    case Act::silu: activate_values<T, Act::silu>(y); break;
    case Act::gelu_tanh: activate_values<T, Act::gelu_tanh>(y); break;
  }
  if (with.gated) {
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = __fmul_rn(y[v], with.gate[v]);
  }
  if (with.added) {
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = __fadd_rn(y[v], with.residual[v]);
  }
}

// Eight neighbours, 16-byte aligned.
template <class T>
struct Eight {
  Pack<T> packs[8 / Pack<T>::kSize];

  __device__ static Eight load(const T* from) {
    Eight e;
#pragma unroll
    for (int i = 0; i < 8 / Pack<T>::kSize; ++i) e.packs[i] = load_pack(from + i * Pack<T>::kSize);
    return e;
  }
  __device__ void floats(float (&to)[8]) const {
#pragma unroll
    for (int v = 0; v < 8; ++v) to[v] = to_float(packs[v / Pack<T>::kSize].values[v % Pack<T>::kSize]);
  }
};

__device__ inline void load_eight(const void* values, DType dtype, int64_t at, float (&to)[8]) {
  switch (dtype) {
    case DType::f16: return Eight<__half>::load(static_cast<const __half*>(values) + at).floats(to);
    case DType::bf16: return Eight<__nv_bfloat16>::load(static_cast<const __nv_bfloat16*>(values) + at).floats(to);
    default: return Eight<float>::load(static_cast<const float*>(values) + at).floats(to);
  }
}

// Finishes and stores eight columns: `with` but for gate and residual, which are read where it says so; `gate_packs`:
// as one piece.
template <class T>
__device__ inline void finish_eight(float (&y)[8], Finishing<8>& with, const T* gate, bool gate_packs,
                                    const Eight<T>& residual, Act act, T* out) {
  if (with.gated) {
    if (gate_packs) {
      Eight<T>::load(gate).floats(with.gate);
    } else {
#pragma unroll
      for (int v = 0; v < 8; ++v) with.gate[v] = to_float(gate[v]);
    }
  }
  if (with.added) residual.floats(with.residual);
  finish_values<T>(y, with, act);
#pragma unroll
  for (int pack = 0; pack < 8 / Pack<T>::kSize; ++pack) {
    Pack<T> result;
#pragma unroll
    for (int v = 0; v < Pack<T>::kSize; ++v) result.values[v] = from_float<T>(y[pack * Pack<T>::kSize + v]);
    store_pack(out + pack * Pack<T>::kSize, result);
  }
}

}  // namespace kinora::cuda
