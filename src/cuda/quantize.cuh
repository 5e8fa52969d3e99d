// Device-side bricks of core/quantize.h: the same codes and scales, bit for bit.
#pragma once

#include <cuda_fp8.h>

#include "cuda/device.cuh"

namespace kinora::cuda {

// Where quantized rows go: codes [m, k], then float32 scales [m].
struct RowsOut {
  uint8_t* codes;
  float* scales;
  bool fp8;
};
inline RowsOut rows_out(void* memory, int64_t m, int64_t k, bool fp8) {
  auto* codes = static_cast<uint8_t*>(memory);
  return {codes, reinterpret_cast<float*>(codes + m * k), fp8};
}

// The bits of |x| as float32, whose order is that of the magnitudes, with NaN above infinity.
__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

// The largest of a pack of T. In 16 bits, too, the order of the bits is that of the magnitudes.
template <class T>
__device__ inline uint32_t magnitude_bits(uint4 pack) {
  const uint32_t words[4] = {pack.x, pack.y, pack.z, pack.w};
  uint32_t peak = 0;
#pragma unroll
  for (uint32_t word : words) {
    peak = sizeof(T) == 2 ? __vmaxu2(peak, word & 0x7fff7fffu) : max(peak, word & 0x7fffffffu);
  }
  if constexpr (sizeof(T) == 2) {
    auto bits = static_cast<unsigned short>(max(peak & 0xffffu, peak >> 16));
    T largest;
    memcpy(&largest, &bits, sizeof bits);
    peak = magnitude_bits(to_float(largest));
  }
  return peak;
}

// A pack's values. Its words stay words until then: as single values they would take twice the registers.
template <class T>
__device__ inline void unpack(uint4 pack, float (&values)[Pack<T>::kSize]) {
  const uint32_t words[4] = {pack.x, pack.y, pack.z, pack.w};
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) {
    if constexpr (sizeof(T) == 2) {
      auto bits = static_cast<unsigned short>(words[i / 2] >> (16 * (i % 2)));
      T value;
      memcpy(&value, &bits, sizeof bits);
      values[i] = to_float(value);
    } else {
      values[i] = __uint_as_float(words[i]);
    }
  }
}

// The largest of `Lanes` neighbouring threads' values, Lanes a power of two or a multiple of 32; `shared` has a word
// for each warp of the block. Every thread of the block must come here.
template <int Lanes>
__device__ inline uint32_t lanes_max(uint32_t x, uint32_t* shared) {
  if constexpr (Lanes < 32) {
#pragma unroll
    for (int offset = Lanes / 2; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(0xffffffffu, x, offset));
  } else {
    x = __reduce_max_sync(0xffffffffu, x);
  }
  if constexpr (Lanes > 32) {
    constexpr int kWarps = Lanes / 32;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    int first = static_cast<int>(threadIdx.x) / Lanes * kWarps;
    x = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) x = max(x, shared[first + i]);
  }
  return x;
}

struct RowScaleOnDevice {
  float scale, inverse;
};
__device__ inline RowScaleOnDevice row_scale_of(uint32_t peak_bits, bool fp8) {
  float limit = fp8 ? 448.0f : 127.0f, peak = __uint_as_float(peak_bits);
  if (peak_bits >= 0x7f800000u) return {__uint_as_float(0x7fc00000u), 0.0f};
  if (peak < 0x1p-100f) return {0.0f, 0.0f};
  return {__fdiv_rn(peak, limit), __fdiv_rn(limit, peak)};
}

__device__ inline uint32_t int8_code(float scaled) {
  return static_cast<uint32_t>(__float2int_rn(fminf(fmaxf(scaled, -127.0f), 127.0f))) & 0xffu;
}

// A row without a scale gets zeros, whatever is in it.
__device__ inline uint8_t code_of(float x, float inverse, bool fp8) {
  if (inverse == 0.0f) return 0;
  float scaled = __fmul_rn(x, inverse);
  return fp8 ? __nv_cvt_float_to_fp8(scaled, __NV_SATFINITE, __NV_E4M3) : static_cast<uint8_t>(int8_code(scaled));
}

// Four codes in a word, the first in the lowest byte.
__device__ inline uint32_t four_codes(const float (&x)[4], float inverse, bool fp8) {
  if (inverse == 0.0f) return 0;
  float a = __fmul_rn(x[0], inverse), b = __fmul_rn(x[1], inverse);
  float c = __fmul_rn(x[2], inverse), d = __fmul_rn(x[3], inverse);
  if (fp8) {
    uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
    uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);
    return low | high << 16;
  }
  return int8_code(a) | int8_code(b) << 8 | int8_code(c) << 16 | int8_code(d) << 24;
}

// The codes of N neighbouring values; `codes` is aligned to N bytes.
template <int N>
__device__ inline void store_codes(uint8_t* codes, const float (&x)[N], float inverse, bool fp8) {
  static_assert(N == 4 || N == 8);
  if constexpr (N == 4) {
    *reinterpret_cast<uint32_t*>(codes) = four_codes(x, inverse, fp8);
  } else {
    float low[4] = {x[0], x[1], x[2], x[3]}, high[4] = {x[4], x[5], x[6], x[7]};
    *reinterpret_cast<uint2*>(codes) = make_uint2(four_codes(low, inverse, fp8), four_codes(high, inverse, fp8));
  }
}

// The values of two E4M3 codes, the first in the lower byte.
__device__ inline float2 fp8_pair(uint32_t codes) {
  return __half22float2(
      __half2(__nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(codes & 0xffffu), __NV_E4M3)));
}

// Of four bits: a sign, two bits of exponent, one of mantissa. As the top bits of a half's exponent and mantissa they
// stand for 2^-14 of their value, the one below 1 included.
__device__ inline float fp4_value(uint32_t code) {
  __half_raw half;
  half.x = static_cast<unsigned short>((code & 8u) << 12 | (code & 7u) << 9);
  return __half2float(__half(half)) * 0x1p14f;
}

}  // namespace kinora::cuda
