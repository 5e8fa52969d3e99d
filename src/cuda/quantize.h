// Codes of 8 and 4 bits to numbers, for products that take only those.
#pragma once

#include "core/quantize.h"
#include "cuda/cuda.h"

namespace kinora::cuda {

// A matrix [n, k], k a multiple of 16, or rows of activations.
struct Decoder {
  QuantFormat format;
  int64_t n = 0, k = 0;

  // out [n, k] of `dtype`, rounded once. `scale` null: the codes as numbers, which all three float types hold (not
  // nvfp4). `scale_2` is nvfp4's. All on the device; codes and out 16-byte aligned.
  void enqueue(cudaStream_t stream, const void* codes, const void* scale, const void* scale_2, DType dtype,
               void* out) const;
};

}  // namespace kinora::cuda
