// Weights and rows of activations as NVFP4, and the codes back to numbers: core/quantize.h has the format and the
// layout.
#pragma once

#include "core/quantize.h"
#include "cuda/cuda.h"

namespace kinora::cuda {

// Whether the device in use multiplies NVFP4 by NVFP4 (compute capability 10.0 and later). Such products have not run
// on one yet: what is written of them follows NVIDIA's documentation of cuBLAS. All else of the format runs on every
// device.
bool has_nvfp4_products();

// x [m, k] (any float type), 16-byte aligned, to `rows` of that layout.
void quantize_nvfp4_rows(cudaStream_t stream, DType dtype, const void* x, const Nvfp4Rows& layout, void* rows);

// The bits of the largest magnitude of x (any float type, 16-byte aligned, `count` a multiple of 16), a NaN the
// largest.
void find_peak(cudaStream_t stream, DType dtype, const void* x, int64_t count, uint32_t* bits);
// A weight of `count` values, all finite, aligned and in multiples as above, as quantize_matrix has it: two codes a
// byte (8-byte aligned), and a scale for each 16.
void quantize_nvfp4_weight(cudaStream_t stream, DType dtype, const void* x, int64_t count, float scale_2, void* codes,
                           void* scales);

// Codes [n, k/2] with tiled scales to out [n, k] of `dtype`, rounded once; with `row_scales` null to code·scale, which
// all three float types hold. All on the device and 16-byte aligned.
struct TiledNvfp4 {
  const void *codes, *scales;
  const float* row_scales = nullptr;
  int64_t n = 0, k = 0;
  void decode(cudaStream_t stream, DType dtype, void* out) const;
};

}  // namespace kinora::cuda
