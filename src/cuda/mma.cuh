// The tensor cores by m16n8k16 products of 16-bit types with float32 sums, and what feeds them: ldmatrix and cp.async.
//
// With g = lane / 4 and c = lane % 4, a lane holds of A [16, 16] the pairs (g, 2c), (g + 8, 2c), (g, 2c + 8),
// (g + 8, 2c + 8), of B [16, 8] the pairs (2c, g), (2c + 8, g) along k, of the sums [16, 8] the pairs (g, 2c),
// (g + 8, 2c); a pair is two neighbours, the first in the low half.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"

namespace kinora::cuda {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8x8 matrices; lane i gives the address of row i % 8 of matrix i / 8, and gets the pair (g, 2c) of each.
__device__ inline void ldmatrix(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// The same of the transposed matrices: the pair (2c, g), along the column.
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// sums += A·B
template <class T>
__device__ inline void mma(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma<__half>(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma<__nv_bfloat16>(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory, or zeros; the source must be a valid address all the same.
__device__ inline void cp_async(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `kPending` of this thread's groups are under way.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// 2^x to about 2^-22; -inf gives 0.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two values of T in one register, the first in the low half.
template <class T>
struct Pair;
template <>
struct Pair<__half> {
  static constexpr bool kNarrow = true;  // its range is much less than float32's
  __device__ static uint32_t of(float low, float high) { return bits(__floats2half2_rn(low, high)); }
  __device__ static uint32_t relu(uint32_t x) { return bits(__hmax2(__half2(raw(x)), __float2half2_rn(0.0f))); }
  __device__ static float2 floats(uint32_t x) { return __half22float2(__half2(raw(x))); }

 private:
  __device__ static __half2_raw raw(uint32_t x) {
    return {static_cast<unsigned short>(x & 0xffffu), static_cast<unsigned short>(x >> 16)};
  }
  __device__ static uint32_t bits(__half2 x) {
    auto r = static_cast<__half2_raw>(x);
    return r.x | static_cast<uint32_t>(r.y) << 16;
  }
};
template <>
struct Pair<__nv_bfloat16> {
  static constexpr bool kNarrow = false;
  __device__ static uint32_t of(float low, float high) { return bits(__floats2bfloat162_rn(low, high)); }
  __device__ static uint32_t relu(uint32_t x) {
    return bits(__hmax2(__nv_bfloat162(raw(x)), __float2bfloat162_rn(0.0f)));
  }
  __device__ static float2 floats(uint32_t x) { return __bfloat1622float2(__nv_bfloat162(raw(x))); }

 private:
  __device__ static __nv_bfloat162_raw raw(uint32_t x) {
    return {static_cast<unsigned short>(x & 0xffffu), static_cast<unsigned short>(x >> 16)};
  }
  __device__ static uint32_t bits(__nv_bfloat162 x) {
    auto r = static_cast<__nv_bfloat162_raw>(x);
    return r.x | static_cast<uint32_t>(r.y) << 16;
  }
};

}  // namespace kinora::cuda
