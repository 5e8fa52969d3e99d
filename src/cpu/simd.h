// The inner loops of the CPU kernels, compiled once per instruction set and chosen when the program starts.
// All work on float32 rows; other types are converted at the edges with `load` and `store`.
// Sums run in sixteen fixed lanes, so every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace kinora::cpu {

enum class Unary { exp, log, sqrt, rsqrt, sin, cos, tanh, erf, sigmoid, relu, step, silu, gelu_tanh, gelu, quick_gelu };
enum class Binary { add, sub, mul, div };

// y = residual + gate·act(c·scale·factor + bias), columnwise; what is null is left out.
struct RowFinish {
  const float* scale = nullptr;
  float factor = 1;    // goes with scale
  bool whole = false;  // c holds int32 numbers
  const float* bias = nullptr;
  const float* gate = nullptr;
  const void* residual = nullptr;  // of y's type
  bool act = false;
  Unary unary = Unary::silu;
  DType type = DType::f32;  // of y
};

struct DepthwiseRow {
  DType type;               // of the pictures
  const void* const* rows;  // [kh]: the picture's rows under the kernel, null beyond its border
  const float* weight;      // [kh, kw, channels]
  const float* bias;        // [channels], or null
  size_t channels, kh, kw, stride, padding;
  size_t width_in, width;  // pixels of a picture row and of the result
  bool glu;                // the result is the first half of the channels · silu(the second half)
};

struct Simd {
  const char* name;
  void (*load)(DType dtype, const void* src, float* dst, size_t n);  // float types, and codes of 8 bits as they are
  void (*store)(DType dtype, const float* src, void* dst, size_t n);
  void (*unary)(Unary op, const float* x, float* y, size_t n);  // y may be x
  // Strides are 0 (one value) or 1. y may be a or b.
  void (*binary)(Binary op, const float* a, size_t stride_a, const float* b, size_t stride_b, float* y, size_t n);
  void (*affine)(const float* x, float scale, float shift, float* y, size_t n);
  void (*clamp)(const float* x, float low, float high, float* y, size_t n);
  float (*sum)(const float* x, size_t n);
  float (*max)(const float* x, size_t n);
  float (*dot)(const float* a, const float* b, size_t n);
  float (*sum_square_diff)(const float* x, float centre, size_t n);  // Σ (x - centre)²
  void (*axpy)(float a, const float* x, float* y, size_t n);         // y += a·x
  // y = (x - centre)·factor·(offset + weight) + bias; weight, bias may be null (then the factor stands alone).
  void (*normalize)(const float* x, float centre, float factor, const float* weight, float offset, const float* bias,
                    float* y, size_t n);
  // x = exp(x - max); returns their sum.
  float (*exp_sum)(float* x, float max, size_t n);
  // One row (or part of a row) of a product on its way out, see RowFinish. c is overwritten.
  void (*finish_row)(const RowFinish& finish, float* c, void* y, size_t n);
  // x = exp(x·scale + bias - max of that) in place, bias null for none; returns the sum.
  float (*softmax_row)(float* x, float scale, const float* bias, size_t n);
  // One output row of a depthwise convolution, see DepthwiseRow.
  void (*depthwise_row)(const DepthwiseRow& row, void* y);
  // Linear attention of one head: rows of `type`, `stride` elements apart, d <= 256.
  // state[(d + 1) x d] = Σ_n [v_n; 1] relu(k_n)ᵀ over `n` tokens
  void (*linear_state)(DType type, const void* k, const void* v, size_t stride, size_t n, size_t d, float* state);
  // y_n = (state·relu(q_n))[:d] / ((state·relu(q_n))[d] + eps); state_t is its first d rows transposed, then its last.
  void (*linear_apply)(DType type, const void* q, void* y, size_t stride, size_t n, size_t d, const float* state_t,
                       float eps);
  // nvfp4 without scale_2: n values, a multiple of 16, of their codes and E4M3 scales.
  void (*load_fp4)(const uint8_t* codes, const uint8_t* scales, float* dst, size_t n);
  float (*peak)(const float* x, size_t n);  // the largest magnitude by its bits: NaN counts most
  // Codes (i8 or f8_e4m3) of x·inverse, which must be finite.
  void (*quantize)(DType type, const float* x, float inverse, void* codes, size_t n);
};

const Simd& simd();  // the best for this machine

extern const Simd kSimdGeneric, kSimdAvx2, kSimdAvx512;

}  // namespace kinora::cpu
