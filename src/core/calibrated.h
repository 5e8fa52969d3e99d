// Rounding weights with regard to what they will be multiplied with: formats, files and products stay as they are, only
// other codes and scales are chosen.
//
// For inputs x with second moments M = mean of x·xᵀ, an error e of a row of weights costs its product e·M·eᵀ on
// average. With M + damping = R·Rᵀ, R upper triangular, that is |e·R|², whose column j depends on the errors of weights
// 0..j alone: weights are rounded in this order, each to the code that makes its column smallest given the errors
// before it. This is GPTQ (arXiv:2210.17323) as Babai's nearest plane (arXiv:2507.18553), which needs no inverse. From
// the diagonal of M alone there is nothing to make up for, and only the scales are chosen by these costs.
#pragma once

#include "core/quantize.h"

namespace kinora {

class InputMoments {
 public:
  // f32 [k, k], or its diagonal alone, [k]; k a multiple of 16. Throws Error(model) for values that are not finite or
  // are no moments of anything. Takes 4·k² more bytes for R. `pool` null: on this thread; the result is the same.
  explicit InputMoments(Tensor moments, ThreadPool* pool = nullptr);

  int64_t length() const { return moments_.shape()[0]; }
  bool full() const { return moments_.shape().rank() == 2; }
  bool all_zero() const { return !factor_.defined(); }  // then nothing is known
  const Tensor& moments() const { return moments_; }
  const Tensor& factor() const { return factor_; }  // R [k, k], or the roots of the diagonal [k], in `order`
  // Position -> input. Blocks of 16 inputs stay together; those with the largest moments come first, so that the errors
  // of few inputs are left to the end, and small ones.
  const std::vector<int64_t>& order() const { return order_; }

 private:
  Tensor moments_, factor_;
  std::vector<int64_t> order_;
};

// As quantize_matrix (core/quantize.h), of a weight whose inputs have these moments.
QuantizedMatrix quantize_matrix(const Tensor& weight, QuantFormat format, const InputMoments& inputs,
                                ThreadPool* pool = nullptr);

// |x·(weight - decoded)ᵀ| / |x·weightᵀ| in the root mean square over inputs x of these moments and over the rows of the
// weight, of which 128 at most, evenly spread, are looked at.
double product_error(const Tensor& weight, const QuantizedMatrix& quantized, QuantFormat format,
                     const InputMoments& inputs, ThreadPool* pool = nullptr);

}  // namespace kinora
