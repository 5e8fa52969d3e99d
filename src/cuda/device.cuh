// Device-side bricks: conversions, 16-byte packs, reductions in a fixed order.
#pragma once

#include "cuda/cuda.h"

namespace kinora::cuda {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// As many elements as fit in 16 bytes, moved by one instruction; the address must be 16-byte aligned.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};
template <class T>
__device__ inline Pack<T> load_pack(const T* address) {
  uint4 bits = *reinterpret_cast<const uint4*>(address);  // as one word, which the compiler does not take apart
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof bits);
  return pack;
}
template <class T>
__device__ inline void store_pack(T* address, const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof bits);
  *reinterpret_cast<uint4*>(address) = bits;
}

__device__ inline float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

}  // namespace kinora::cuda
