// A warpgroup's products of 16-bit floats with float32 sums, in the sizes that attention asks for. Sums lie as mma's
// do: warp i of the warpgroup has rows 16 i on, sums[j] the columns from 8 j on.
#pragma once

#include "cuda/wgmma.cuh"

namespace kinora::cuda {

// sums = x [64, 16] · w [kColumns, 16]ᵀ, plus what they were where `add` is not 0.
template <class T, int kColumns>
__device__ inline void wgmma_rows(float (&sums)[kColumns / 8][4], uint64_t x, uint64_t w, uint32_t add);

// sums += x [64, 16] · w [16, kColumns]: x in registers, as mma's A of each warp; w by columns_descriptor.
template <class T, int kColumns>
__device__ inline void wgmma_columns(float (&sums)[kColumns / 8][4], const uint32_t (&x)[4], uint64_t w);

// The operands' names in tens, and the sums of 8 and 32 columns.
#define KINORA_TEN(t) \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define KINORA_30 KINORA_TEN() ", " KINORA_TEN(1) ", " KINORA_TEN(2)
#define KINORA_80 \
  KINORA_30 ", " KINORA_TEN(3) ", " KINORA_TEN(4) ", " KINORA_TEN(5) ", " KINORA_TEN(6) ", " KINORA_TEN(7)
#define KINORA_8(j) "+f"(sums[j][0]), "+f"(sums[j][1]), "+f"(sums[j][2]), "+f"(sums[j][3])
#define KINORA_32(j) KINORA_8(j), KINORA_8(j + 1), KINORA_8(j + 2), KINORA_8(j + 3)

#define KINORA_WGMMA_ROWS(T, type, columns, names, x_name, w_name, add_name, ...)                                      \
  template <>                                                                                                          \
  __device__ inline void wgmma_rows<T, columns>(float(&sums)[columns / 8][4], uint64_t x, uint64_t w, uint32_t add) {  \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, " add_name ", 0;\n\twgmma.mma_async.sync.aligned.m64n" #columns \
                 "k16.f32." type "." type " {" names "}, " x_name ", " w_name ", p, 1, 1, 0, 0;\n\t}"                  \
                 : __VA_ARGS__                                                                                         \
                 : "l"(x), "l"(w), "r"(add)                                                                            \
                 : "memory");                                                                                          \
  }
#define KINORA_WGMMA_COLUMNS(T, type, columns, names, x_names, w_name, ...)                                           \
  template <>                                                                                                         \
  __device__ inline void wgmma_columns<T, columns>(float(&sums)[columns / 8][4], const uint32_t(&x)[4], uint64_t w) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" names "}, {" x_names      \
                 "}, " w_name ", 1, 1, 1, 1;"                                                                         \
                 : __VA_ARGS__                                                                                        \
                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "l"(w)                                                 \
                 : "memory");                                                                                         \
  }
#define KINORA_WGMMA_OF(T, type)                                                                                       \
  KINORA_WGMMA_ROWS(T, type, 160, KINORA_80, "%80", "%81", "%82", KINORA_32(0), KINORA_32(4), KINORA_32(8),            \
                    KINORA_32(12), KINORA_32(16))                                                                      \
  KINORA_WGMMA_COLUMNS(T, type, 72, KINORA_30 ", %30, %31, %32, %33, %34, %35", "%36, %37, %38, %39", "%40",           \
                       KINORA_32(0), KINORA_32(4), KINORA_8(8))                                                        \
  KINORA_WGMMA_COLUMNS(T, type, 112, KINORA_30 ", " KINORA_TEN(3) ", " KINORA_TEN(4) ", %50, %51, %52, %53, %54, %55", \
                       "%56, %57, %58, %59", "%60", KINORA_32(0), KINORA_32(4), KINORA_32(8), KINORA_8(12),            \
                       KINORA_8(13))
KINORA_WGMMA_OF(__nv_bfloat16, "bf16")
KINORA_WGMMA_OF(__half, "f16")
#undef KINORA_WGMMA_OF
#undef KINORA_WGMMA_COLUMNS
#undef KINORA_WGMMA_ROWS
#undef KINORA_32
#undef KINORA_8
#undef KINORA_80
#undef KINORA_30
#undef KINORA_TEN

}  // namespace kinora::cuda
