// Codes of 8 and 4 bits to numbers, for products that take only those, and weights to codes.
#pragma once

#include "core/quantize.h"
#include "cuda/cuda.h"
#include "graph/executable.h"

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

// x [m, k] (any float type), 16-byte aligned, to codes [m, k] (E4M3 or int8) and scales [m]: quantize_row's.
void quantize_rows(cudaStream_t stream, DType dtype, const void* x, int64_t m, int64_t k, bool fp8, void* codes,
                   float* scales);

// Backend::quantizer. Where the device has no room for a weight, the host quantizes it.
Quantizer weight_quantizer(std::shared_ptr<Device> device, std::shared_ptr<ThreadPool> pool);

}  // namespace kinora::cuda
