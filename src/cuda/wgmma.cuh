// Hopper's products of a warpgroup (four warps) from shared memory, and what feeds them: tensor maps' copies and
// mbarriers (PTX ISA, "Asynchronous warpgroup level matrix instructions" and "Data movement"). Only in code for sm_90a.
#pragma once

#include <cuda.h>

#include "cuda/mma.cuh"

namespace kinora::cuda {

// An mbarrier is 8 bytes of shared memory. Its phases have parities 0, 1, 0, …; before the first one ends, one of
// parity 1 counts as ended.
__device__ inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// For copies and other threads, which may use barriers after the __syncthreads that follows.
__device__ inline void barriers_made() {
  asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives; the phase ends when so many bytes have been copied, too.
__device__ inline void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t ended = 0;
  while (!ended) {
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// The map's box from these coordinates on; what lies beyond the tensor is zeros, and counts as bytes.
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// So many bytes, a multiple of 16, of memory that is 16-byte aligned.
__device__ inline void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(barrier)
               : "memory");
}

// The same of the box of a [batch, tokens, heads, dim] tensor from this dimension and token of a head on.
__device__ inline void copy_box(uint32_t to, const CUtensorMap& map, int dim, int head, int token, int batch,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(dim), "r"(head), "r"(token), "r"(batch), "r"(barrier)
      : "memory");
}

// What threads have written to shared memory comes before what copies and products do there later.
__device__ inline void shared_written() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Some warps of a block wait for each other, `threads` in all; `id` from 1 on.
__device__ inline void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// As barrier_sync, but goes on.
__device__ inline void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The matrix descriptor of rows of 128 bytes in the 128-byte swizzle, eight of them (1024 bytes) after the other. The
// columns 32 i bytes further on have the descriptor plus 2 i.
__device__ inline uint64_t rows_descriptor(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 / 16, kSwizzle128 = 1;
  return (address & 0x3ffffu) >> 4 | uint64_t{1} << 16 | kEightRows << 32 | kSwizzle128 << 62;
}

// The same of a transposed operand, whose rows lie along k: 64 of its columns fill a row of 128 bytes, the next 64 lie
// `columns_apart` bytes further on. 16 rows (a product's depth) further on is the descriptor plus 128.
__device__ inline uint64_t columns_descriptor(uint32_t address, uint32_t columns_apart) {
  return (rows_descriptor(address) & ~(uint64_t{0x3fff} << 16)) | uint64_t{columns_apart / 16} << 16;
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most `kPending` groups are under way.
template <int kPending>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Registers of each thread from now on, a multiple of 8 that fits with the others'; for all of a warpgroup.
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// sums = x [64, 32] · w [kColumns, 32]ᵀ, plus what they were where `add` is not 0, of INT8 codes with int32 sums or FP8
// (E4M3) codes with float sums. Warp i of the warpgroup holds rows 16 i on, sums[j] the columns from 8 j on, as mma
// does.
template <class Sum, int kColumns>
__device__ inline void wgmma_codes(Sum (&sums)[kColumns / 8][4], uint64_t x, uint64_t w, uint32_t add);

// The operands' names in tens, and the sums of 8 and 32 columns, which are registers of this kind.
#define KINORA_TEN(t) \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define KINORA_8(kind, j) kind(sums[j][0]), kind(sums[j][1]), kind(sums[j][2]), kind(sums[j][3])
#define KINORA_32(kind, j) KINORA_8(kind, j), KINORA_8(kind, j + 1), KINORA_8(kind, j + 2), KINORA_8(kind, j + 3)
#define KINORA_64(kind, j) KINORA_32(kind, j), KINORA_32(kind, j + 4)
#define KINORA_128(kind, j) KINORA_64(kind, j), KINORA_64(kind, j + 8)
#define KINORA_WGMMA(Sum, type, scales, columns, names, x_name, w_name, add_name, ...)                                 \
  template <>                                                                                                          \
  __device__ inline void wgmma_codes<Sum, columns>(Sum(&sums)[columns / 8][4], uint64_t x, uint64_t w, uint32_t add) { \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " add_name ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #columns \
                 "k32." type " {" names "}, " x_name ", " w_name ", p" scales ";\n\t}"                                 \
                 : __VA_ARGS__                                                                                         \
                 : "l"(x), "l"(w), "r"(add)                                                                            \
                 : "memory");                                                                                          \
  }
#define KINORA_60 KINORA_TEN() KINORA_TEN(1) KINORA_TEN(2) KINORA_TEN(3) KINORA_TEN(4) KINORA_TEN(5)
#define KINORA_WGMMA_OF(Sum, type, scales, kind)                                                                     \
  KINORA_WGMMA(Sum, type, scales, 144, KINORA_60 KINORA_TEN(6) "%70, %71", "%72", "%73", "%74", KINORA_128(kind, 0), \
               KINORA_8(kind, 16), KINORA_8(kind, 17))                                                               \
  KINORA_WGMMA(Sum, type, scales, 192,                                                                               \
               KINORA_60 KINORA_TEN(6) KINORA_TEN(7) KINORA_TEN(8) "%90, %91, %92, %93, %94, %95", "%96", "%97",     \
               "%98", KINORA_128(kind, 0), KINORA_64(kind, 16))                                                      \
  KINORA_WGMMA(Sum, type, scales, 256,                                                                               \
               KINORA_60 KINORA_TEN(6) KINORA_TEN(7) KINORA_TEN(8) KINORA_TEN(9) KINORA_TEN(10)                      \
                   KINORA_TEN(11) "%120, %121, %122, %123, %124, %125, %126, %127",                                  \
               "%128", "%129", "%130", KINORA_128(kind, 0), KINORA_128(kind, 16))
KINORA_WGMMA_OF(int32_t, "s32.s8.s8", "", "+r")
KINORA_WGMMA_OF(float, "f32.e4m3.e4m3", ", 1, 1", "+f")
#undef KINORA_WGMMA_OF
#undef KINORA_60
#undef KINORA_WGMMA
#undef KINORA_128
#undef KINORA_64
#undef KINORA_32
#undef KINORA_8
#undef KINORA_TEN

}  // namespace kinora::cuda
