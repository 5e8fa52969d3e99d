// Numbers of 8 and 4 bits in place of weights, and of the rows that meet them: formats, layouts, exact conversions.
// Every value below is float32 arithmetic with the roundings written here, so that all backends give the same codes.
#pragma once

#include <string>
#include <string_view>

#include "core/tensor.h"
#include "core/threads.h"

namespace kinora {

// int8, fp8: x is quantized too, by row, when it runs. The others keep x as it is.
enum class QuantFormat : uint8_t { int8, int8_weights, fp8, fp8_weights, nvfp4 };

// "int8", "int8-weights", "fp8", "fp8-weights", "nvfp4".
std::string_view quant_format_name(QuantFormat format);
// Throws Error(usage) naming those that there are.
QuantFormat quant_format_from_name(std::string_view name);
bool quantizes_rows(QuantFormat format);

constexpr int64_t kNvfp4Block = 16;  // values that share a scale
// Weights whose rows are not a multiple of this long are not quantized.
constexpr int64_t kQuantizedRowMultiple = 16;

// A weight [n, k, ..] (axes after the second: 1) in a format. value(i, j) is
//   int8:  code·scale[i]                     codes i8      [n, k, ..],    scale f32 [n]
//   fp8:   code·scale[i]                     codes f8_e4m3 [n, k, ..],    scale f32 [n]
//   nvfp4: code·(scale[i, j / 16]·scale_2)   codes u8      [n, k/2, ..],  scale f8_e4m3 [n, k/16], scale_2 f32 []
// nvfp4 holds value 2j in the lower half of byte j. (ModelOpt's layouts and names.)
struct QuantizedMatrix {
  Tensor codes, scale, scale_2;
};

DType code_type(QuantFormat format);
Shape code_shape(QuantFormat format, const Shape& weight);
Shape scale_shape(QuantFormat format, const Shape& weight);
DType scale_type(QuantFormat format);
// The shape of the weight that such codes stand for.
Shape decoded_shape(QuantFormat format, const Shape& codes);

// Throws Error(model) when a value is NaN or infinite. `pool` null: on this thread; the result is the same.
QuantizedMatrix quantize_matrix(const Tensor& weight, QuantFormat format, ThreadPool* pool = nullptr);
// Values [begin, end) of row i of the matrix, as float32; begin is a multiple of 16. The pointers are those of the
// whole tensors, `k` is the length of a row.
struct QuantizedView {
  QuantFormat format;
  const void* codes;
  const void* scale;
  float scale_2;
  int64_t k;
};
void dequantize_row(const QuantizedView& matrix, int64_t row, int64_t begin, int64_t end, float* out);

// Of a row of activations whose largest magnitude is `peak`: code = round(clamp(x·inverse)), value = code·scale, with
// scale = peak / 127 or / 448 and inverse = 127 or 448 / peak, each rounded once. A peak below 2^-100 counts as zero:
// scale and inverse are 0. One that is not finite gives a NaN scale, and codes of 0.
struct RowScale {
  float scale, inverse;
};
RowScale row_scale(QuantFormat format, float peak);

// Rows of activations in one piece of memory: codes [m, k] (i8 or f8_e4m3), then float32 scales [m].
inline int64_t quantized_rows_bytes(int64_t m, int64_t k) { return m * (k + 4); }
// One row; a NaN or an infinity in x makes the scale NaN.
void quantize_row(QuantFormat format, const float* x, int64_t k, void* codes, float* scale);

}  // namespace kinora
