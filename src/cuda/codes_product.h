// Products of 8-bit codes whose sums are finished where they arise, in registers: the sums (of INT8 exact, in int32; of
// FP8 as the tensor cores keep them, somewhat less exact than float32), then what ProductFinish does to them, with its
// very bits.
#pragma once

#include <optional>

#include "cuda/codes_kernels.h"

namespace kinora::cuda {

// A table in codes_product.cpp says which one runs where; `none`: those of cuBLASLt.
enum class CodesKernel : uint8_t { none, mma, wgmma };

class CodesProduct {
 public:
  // out [m, n] = finish(x [m, k] · wᵀ), w [n, k], both of `codes`: i8 or f8_e4m3. Of `finish`: the type, bias, gates,
  // activation and rows of the result; `sums` is not looked at.
  CodesProduct(DType codes, int64_t m, int64_t n, int64_t k, const ProductFinish& finish);

  // False where none of the kernels takes this: n or the rows of the result are no multiples of 8, k none of 16; and of
  // FP8 where cuBLASLt's products are faster, or give other bits than ours.
  bool available() const { return launch_ != nullptr; }

  // Codes on the device, 16-byte aligned; of `data`, `sums`, `rows` and `first_row` are not looked at. The rows of the
  // result are no other memory that is read.
  void enqueue(cudaStream_t stream, const void* x, const void* w, const ProductFinish::Data& data) const;

 private:
  CodesArguments arguments_;
  CodesLaunch* launch_ = nullptr;
};

// For tests and bench_steps --codes alone: only this kernel is available, or with `none` no product.
extern std::optional<CodesKernel> codes_kernel_override;
bool codes_kernel_runs(CodesKernel kernel, DType codes);  // on the current device

}  // namespace kinora::cuda
