// Matrix products through cuBLASLt, which is opened when first needed. A plan is made once, for one set of shapes.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "cuda/cuda.h"

namespace kinora::cuda {

// Row-major C [m, n] = act(op(A) [m, k] · op(B) [k, n] + bias [n]) + residual, `batch` times.
struct ProductShape {
  int64_t m = 0, n = 0, k = 0, batch = 1;
  bool transpose_a = false, transpose_b = false;  // stored transposed
  bool shared_b = false;                          // one B for all of the batch
  bool bias = false, gelu = false, residual = false;
  DType dtype = DType::f32;         // of C, bias and residual
  std::optional<DType> operands{};  // of A and B when it is another: i8 (C is i32), f8_e4m3, or bf16 (C is f32)
  bool scales = false;              // f8_e4m3: row i of A and column j of B have a scale; C starts from the scaled sums
  bool nvfp4 = false;  // with scales: A, B are packed E2M1, transpose_b, and have tiled E4M3 scales; C is f32
  bool wide = false;   // residual and C are float32, whatever dtype is; then there is no bias and no activation
  bool split = false;  // the sums' parts may be added in an order that depends on m; for bench_products alone
  int64_t row = 0;     // elements from one row of C to the next; 0: n. Residual and C alike; not with a batch
};

// Float32 on the device, [m] and [n], or nvfp4's tiled scales; null without ProductShape::scales.
struct ProductScales {
  const void *rows = nullptr, *columns = nullptr;
};

size_t cublaslt_version();

class Product {
 public:
  // With the plan that tuned_suggestion() chooses.
  explicit Product(const ProductShape& shape);
  // `suggestion`: which of the library's plans to take, its favourite first.
  Product(const ProductShape& shape, int suggestion);
  // False when cuBLASLt has nothing for this shape and epilogue.
  bool available() const;
  size_t workspace_bytes() const;
  void run(const void* a, const void* b, const void* bias, const void* residual, void* c, void* workspace,
           cudaStream_t stream, ProductScales scales = {}) const;

 private:
  struct Plan;
  std::shared_ptr<Plan> plan_;
};

}  // namespace kinora::cuda
