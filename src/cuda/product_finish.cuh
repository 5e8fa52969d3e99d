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

// y becomes residual + gate·act(y·column scale·row scale + bias), to be rounded to T. Where nothing stands between
// them, the residual is added before the bias: in the order, as of the scales, of cuBLASLt's products of FP8 codes.
template <class T, int V>
__device__ inline void finish_values(float (&y)[V], const Finishing<V>& with, Act act) {
  bool early = act == Act::none && !with.gated;
  if (with.scaled) {
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = __fmul_rn(__fmul_rn(y[v], with.column_scale[v]), with.row_scale);
  }
  if (with.added && early) {
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = __fadd_rn(y[v], with.residual[v]);
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
  if (with.added && !early) {
#pragma unroll
    for (int v = 0; v < V; ++v) y[v] = __fadd_rn(y[v], with.residual[v]);
  }
}

}  // namespace kinora::cuda
