// Products of INT8 codes whose sums are finished where they arise, in registers: exact int32 sums, then what
// ProductFinish does to them, with its very bits.
#pragma once

#include <optional>

#include "cuda/int8_kernels.h"

namespace kinora::cuda {

// A table in int8_product.cpp says which one runs where; `none`: those of cuBLASLt, with their sums in memory.
enum class Int8Kernel : uint8_t { none, mma, wgmma };

class Int8Product {
 public:
  // out [m, n] = finish(x [m, k] · wᵀ), w [n, k]. Of `finish`: the type, bias, activation and rows of the result;
  // `sums` is not looked at.
  Int8Product(int64_t m, int64_t n, int64_t k, const ProductFinish& finish);

  // False where none of the kernels takes this: n or the rows of the result are no multiples of 8, k none of 16.
  bool available() const { return launch_ != nullptr; }

  // Codes on the device, 16-byte aligned; of `data`, `sums`, `rows` and `first_row` are not looked at. The rows of the
  // result are no other memory that is read.
  void enqueue(cudaStream_t stream, const void* x, const void* w, const ProductFinish::Data& data) const;

 private:
  Int8Arguments arguments_;
  Int8Launch* launch_ = nullptr;
};

// For tests and bench_steps --int8 alone: only this kernel is available, or with `none` no product.
extern std::optional<Int8Kernel> int8_kernel_override;
bool int8_kernel_runs(Int8Kernel kernel);  // on the current device

}  // namespace kinora::cuda
