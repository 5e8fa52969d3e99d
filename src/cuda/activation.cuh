// The activations that kernels apply to a float32 value before they round it.
#pragma once

#include "cuda/device.cuh"
#include "cuda/epilogue.h"

namespace kinora::cuda {

// silu as exact as float32 allows, for float32 results.
__device__ inline float silu_exact(float x) { return x / (1.0f + expf(-x)); }

// silu within a few units of float32's last place, in five instructions. Very negative x gives -0.
__device__ inline float silu_fast(float x) {
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
  return x * r;
}

// silu to 2^-12 of x, in three instructions of which one is a special function: where sums of many are rounded to
// bfloat16 in the end, whose inputs carry 2^-9.
__device__ inline float silu_rough(float x) {
  float half = 0.5f * x, t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(half));
  return fmaf(half, t, half);
}

// gelu_tanh likewise, by x·σ(2u) = x/2·(1 + tanh u). Very negative x gives -0.
__device__ inline float gelu_tanh_fast(float x) {
  constexpr float kUnit = -2.0f * 0.7978845608028654f * 1.4426950408889634f;
  float e, r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * fmaf(kUnit * 0.044715f, x * x, kUnit)));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(1.0f + e));
  return x * r;
}

// For results that will be rounded to T.
template <class T>
__device__ inline float silu_for(float x) {
  if constexpr (sizeof(T) == 4) {
    return silu_exact(x);
  } else {
    return silu_fast(x);
  }
}

template <class T>
__device__ inline float activate(float x, Act act) {
  switch (act) {
    case Act::relu: return x > 0 ? x : (x != x ? x : 0.0f);
    case Act::silu: return silu_for<T>(x);
    case Act::gelu_tanh: return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    default: return x;
  }
}

// The activation of act_mul, whose results are of T.
template <class T>
__device__ inline float activate_gate(float x, Act act) {
  if constexpr (sizeof(T) == 4) {
    return activate<float>(x, act);
  } else {
    return act == Act::gelu_tanh ? gelu_tanh_fast(x) : activate<T>(x, act);
  }
}

// Element i of an array of any float type.
__device__ inline float load_float(const void* values, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f16: return __half2float(static_cast<const __half*>(values)[i]);
    case DType::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(values)[i]);
    default: return static_cast<const float*>(values)[i];
  }
}

}  // namespace kinora::cuda
