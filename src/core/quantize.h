// Numbers of 8 and 4 bits in place of weights, and of the rows that meet them: formats, layouts, exact conversions.
// Every value below is float32 arithmetic with the roundings written here, so that all backends give the same codes.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "core/tensor.h"
#include "core/threads.h"

namespace kinora {

// int8, fp8, nvfp4_both: x is quantized too, by row, when it runs. The others keep x as it is.
enum class QuantFormat : uint8_t { int8, int8_weights, fp8, fp8_weights, nvfp4, nvfp4_both };

std::string_view quant_format_name(QuantFormat format);
// All of them in the order above: "int8, int8-weights, …, nvfp4-both", with `last` before the last one.
std::string quant_format_names(std::string_view between = ", ", std::string_view last = ", ");
// Throws Error(usage) naming those that there are.
QuantFormat quant_format_from_name(std::string_view name);
bool quantizes_rows(QuantFormat format);
inline bool is_nvfp4(QuantFormat format) { return format == QuantFormat::nvfp4 || format == QuantFormat::nvfp4_both; }

constexpr int64_t kNvfp4Block = 16;  // values that share a scale
// Weights whose rows are not a multiple of this long are not quantized.
constexpr int64_t kQuantizedRowMultiple = 16;

// A weight [n, k, ..] (axes after the second: 1) in a format. value(i, j) is
//   int8:  code·scale[i]                     codes i8      [n, k, ..],    scale f32 [n]
//   fp8:   code·scale[i]                     codes f8_e4m3 [n, k, ..],    scale f32 [n]
//   nvfp4: code·(scale[i, j / 16]·scale_2)   codes u8      [n, k/2, ..],  scale f8_e4m3 [n, k/16], scale_2 f32 []
// nvfp4_both as nvfp4, which holds value 2j in the lower half of byte j. (ModelOpt's layouts and names.)
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
// Another way to do that, with the same bytes and errors.
using Quantizer = std::function<QuantizedMatrix(const Tensor& weight, QuantFormat format)>;
// What one is made of: the tensors, uninitialised; the error, for a magnitude that is not finite; scale_2, given the
// weight's largest magnitude.
QuantizedMatrix allocate_quantized(const Shape& weight, QuantFormat format);
void expect_finite_weight(float magnitude);
float weight_scale_2(float peak);
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
// One row (int8, fp8); a NaN or an infinity in x makes the scale NaN.
void quantize_row(QuantFormat format, const float* x, int64_t k, void* codes, float* scale);

// E4M3 scales of blocks in tiles of 128 rows x 4 blocks, as cuBLASLt takes them ("1D block scaling factors layout" in
// NVIDIA's documentation of cuBLAS): the tiles of a row of tiles follow each other; what lies outside of the matrix is
// 0.
constexpr int64_t kScaleTileRows = 128, kScaleTileBlocks = 4;
constexpr int64_t tiled_scale_bytes(int64_t rows, int64_t blocks) {
  return ceil_div(rows, kScaleTileRows) * ceil_div(blocks, kScaleTileBlocks) * kScaleTileRows * kScaleTileBlocks;
}
constexpr int64_t tiled_scale_at(int64_t row, int64_t block, int64_t blocks) {
  int64_t tile = row / kScaleTileRows * ceil_div(blocks, kScaleTileBlocks) + block / kScaleTileBlocks;
  return tile * kScaleTileRows * kScaleTileBlocks + row % 32 * 16 + row % kScaleTileRows / 32 * kScaleTileBlocks +
         block % kScaleTileBlocks;
}

// Rows of nvfp4_both in one piece of memory: tiled E4M3 scales, codes [m, k/2], float32 row scales [m].
// value(i, j) = code·(scale[i, j / 16]·row_scale[i]). The row scale, and not one of all rows, is what keeps the bytes
// of a row apart from those beside it; with a constant in its place E4M3's 2^-9 to 448 would have to hold every
// activation.
struct Nvfp4Rows {
  int64_t m, k;
  constexpr int64_t blocks() const { return k / kNvfp4Block; }
  constexpr int64_t codes_at() const { return tiled_scale_bytes(m, blocks()); }
  constexpr int64_t row_scales_at() const { return codes_at() + m * k / 2; }
  constexpr int64_t bytes() const { return row_scales_at() + m * 4; }
};
int64_t quantized_rows_bytes(QuantFormat format, int64_t m, int64_t k);

// Row `i` to its place in `rows`; k a multiple of 16. With p the row's peak: row scale p / 2688 (6·448) and v = x·(2688
// / p), each rounded once; below 2^-100 or not finite as of row_scale, and then codes and scales are 0. Of a block with
// the peak b the scale is E4M3(b / 6), or E4M3(b / 4) where that leaves the smaller squared error; code = E2M1(v·(1 /
// scale)). Bytes outside of the row are left as they are.
void quantize_row_nvfp4(const float* x, const Nvfp4Rows& layout, int64_t i, void* rows);
void dequantize_row_nvfp4(const void* rows, const Nvfp4Rows& layout, int64_t i, float* out);

}  // namespace kinora
