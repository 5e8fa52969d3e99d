// Matrix products through cuBLASLt, which is opened when first needed. A plan is made once, for one set of shapes.
#pragma once

#include <memory>
#include <string>

#include "cuda/cuda.h"

namespace kinora::cuda {

// Row-major C [m, n] = act(op(A) [m, k] · op(B) [k, n] + bias [n]) + residual, `batch` times. With a gate, a float32
// vector [n] for each of the batch, C = gate · (op(A) · op(B)) + bias + residual.
struct ProductShape {
  int64_t m = 0, n = 0, k = 0, batch = 1;
  bool transpose_a = false, transpose_b = false;  // stored transposed
  bool shared_b = false;                          // one B for all of the batch
  bool bias = false, gelu = false, residual = false, gate = false;
  bool bias_of_each = false;  // of the batch: bias [batch, n]
  DType dtype = DType::f32;
  bool wide = false;  // residual and C are float32, whatever dtype is; then there is no bias and no activation
  int64_t row = 0;    // elements from one row of C to the next; 0: n. Residual and C alike; not with a batch
};

class Product {
 public:
  // `suggestion`: which of the library's plans to take, its favourite first; for measuring.
  explicit Product(const ProductShape& shape, int suggestion = 0);
  // False when cuBLASLt has nothing for this shape and epilogue.
  bool available() const;
  size_t workspace_bytes() const;
  void run(const void* a, const void* b, const void* bias, const void* residual, void* c, void* workspace,
           cudaStream_t stream, const float* gate = nullptr) const;

 private:
  struct Plan;
  std::shared_ptr<Plan> plan_;
};

}  // namespace kinora::cuda
