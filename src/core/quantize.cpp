#include "core/quantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

namespace kinora {
namespace {

constexpr std::array<std::string_view, 6> kNames{"int8", "int8-weights", "fp8", "fp8-weights", "nvfp4", "nvfp4-both"};
constexpr float kPeakInt8 = 127, kPeakFp8 = 448, kPeakFp4 = 6, kNoPeak = 0x1p-100f;

bool is_int8(QuantFormat format) { return format == QuantFormat::int8 || format == QuantFormat::int8_weights; }
float peak_of(QuantFormat format) {
  return is_nvfp4(format) ? kPeakFp4 * kPeakFp8 : is_int8(format) ? kPeakInt8 : kPeakFp8;
}

// The largest magnitude by its bits, so that a NaN counts as larger than an infinity.
float peak_magnitude(const float* x, int64_t n) {
  uint32_t peak = 0;
  for (int64_t i = 0; i < n; ++i) peak = std::max(peak, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  return std::bit_cast<float>(peak);
}

const std::array<float, 256>& fp8_values() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values{};
    for (size_t i = 0; i < 256; ++i) {
      f8_e4m3 code;
      code.bits = static_cast<uint8_t>(i);
      values[i] = static_cast<float>(code);
    }
    return values;
  }();
  return table;
}

// Both values of each byte of nvfp4.
const std::array<std::array<float, 2>, 256>& fp4_pairs() {
  static const std::array<std::array<float, 2>, 256> table = [] {
    std::array<std::array<float, 2>, 256> pairs{};
    for (size_t i = 0; i < 256; ++i) {
      f4_e2m1 low, high;
      low.bits = static_cast<uint8_t>(i & 15);
      high.bits = static_cast<uint8_t>(i >> 4);
      pairs[i] = {static_cast<float>(low), static_cast<float>(high)};
    }
    return pairs;
  }();
  return table;
}

int8_t int8_code(float value) { return static_cast<int8_t>(std::nearbyint(std::clamp(value, -kPeakInt8, kPeakInt8))); }

using Block [[gnu::vector_size(64)]] = float;
using BlockBits [[gnu::vector_size(64)]] = uint32_t;

// Squared error of a block of magnitudes with this scale. The rounding is f4_e2m1's: to steps of 1/2 below 2, 1 below
// 4, 2 above.
float block_error(Block x, float scale) {
  Block v = x * (scale > 0 ? 1 / scale : 0.0f), half = Block{} + 0.5f, one = Block{} + 1.0f, two = Block{} + 2.0f;
  v = v > kPeakFp4 ? Block{} + kPeakFp4 : v;
  Block step = v < 2.0f ? half : v < 4.0f ? one : two, steps = v < 2.0f ? two : v < 4.0f ? one : half;
  constexpr float kRound = 12582912.0f;  // adding 1.5·2^23 and taking it away rounds to a whole number, ties to even
  Block error = x - (v * steps + kRound - kRound) * step * scale;
  error *= error;
  error += __builtin_shufflevector(error, error, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
  error += __builtin_shufflevector(error, error, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7);
  return (error[0] + error[1]) + (error[2] + error[3]);
}

Block magnitudes(const float* x) {
  BlockBits bits;
  std::memcpy(&bits, x, sizeof bits);
  return std::bit_cast<Block>(bits & 0x7fffffffu);
}

void pack_block(const float* x, float scale, uint8_t* packed) {
  float inverse = scale > 0 ? 1 / scale : 0;
  for (int64_t i = 0; i < kNvfp4Block / 2; ++i) {
    packed[i] = static_cast<uint8_t>(f4_e2m1(x[2 * i] * inverse).bits | f4_e2m1(x[2 * i + 1] * inverse).bits << 4);
  }
}

// The scale that a block's largest value asks for, rounded to E4M3, or a neighbour of it with less squared error: 4/6
// of the range spaces the codes better for some blocks (the search reaches peak/4), clipping the peak for others.
f8_e4m3 quantize_block(const float* x, float scale_2, uint8_t* packed) {
  constexpr int kBelow = 3, kAbove = 5;
  float peak = peak_magnitude(x, kNvfp4Block);
  f8_e4m3 wanted(peak / kPeakFp4 / scale_2), best = wanted;
  Block values = magnitudes(x);
  float least = block_error(values, static_cast<float>(wanted) * scale_2);
  for (int code = std::max(1, wanted.bits - kBelow); code <= std::min(0x7e, wanted.bits + kAbove) && peak > 0; ++code) {
    f8_e4m3 scale;
    scale.bits = static_cast<uint8_t>(code);
    float error = block_error(values, static_cast<float>(scale) * scale_2);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  pack_block(x, static_cast<float>(best) * scale_2, packed);
  return best;
}

// As above of a block of activations: only 6 and 4 are tried, since this is done whenever the model runs.
f8_e4m3 quantize_block_of_row(const float* x, uint8_t* packed) {
  float peak = peak_magnitude(x, kNvfp4Block);
  f8_e4m3 six(peak / kPeakFp4), four(peak / 4);
  Block values = magnitudes(x);
  bool better = block_error(values, static_cast<float>(four)) < block_error(values, static_cast<float>(six));
  f8_e4m3 best = better ? four : six;
  pack_block(x, static_cast<float>(best), packed);
  return best;
}

// Calls body(row, its k values as float32) for every row, on all threads.
void for_rows(const Tensor& weight, int64_t k, ThreadPool* pool,
              const std::function<void(int64_t, const float*)>& body) {
  auto count = static_cast<size_t>(k);
  std::vector<std::vector<float>> rows(static_cast<size_t>(pool ? pool->size() : 1), std::vector<float>(count));
  auto one = [&](int64_t i, int worker) {
    float* row = rows[static_cast<size_t>(worker)].data();
    to_float(weight.dtype(), weight.rows(i, i + 1).raw(), row, count);
    body(i, row);
  };
  if (pool) return pool->run(weight.shape()[0], one);
  for (int64_t i = 0; i < weight.shape()[0]; ++i) one(i, 0);
}

float checked_peak(const float* row, int64_t k) {
  float peak = peak_magnitude(row, k);
  expect_finite_weight(peak);
  return peak;
}

void quantize_blocks_of(const Tensor& weight, int64_t k, ThreadPool* pool, QuantizedMatrix& out) {
  std::vector<float> peaks(static_cast<size_t>(weight.shape()[0]));
  for_rows(weight, k, pool, [&](int64_t i, const float* row) { peaks[static_cast<size_t>(i)] = checked_peak(row, k); });
  float scale_2 = weight_scale_2(peaks.empty() ? 0 : *std::max_element(peaks.begin(), peaks.end()));
  out.scale_2.data<float>()[0] = scale_2;
  for_rows(weight, k, pool, [&](int64_t i, const float* row) {
    uint8_t* packed = out.codes.data<uint8_t>() + i * k / 2;
    f8_e4m3* scales = out.scale.data<f8_e4m3>() + i * k / kNvfp4Block;
    for (int64_t b = 0; b < k / kNvfp4Block; ++b) {
      scales[b] = quantize_block(row + b * kNvfp4Block, scale_2, packed + b * kNvfp4Block / 2);
    }
  });
}

}  // namespace

std::string_view quant_format_name(QuantFormat format) { return kNames[static_cast<size_t>(format)]; }

std::string quant_format_names(std::string_view between, std::string_view last) {
  std::string names;
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (i) names += i + 1 == kNames.size() ? last : between;
    names += kNames[i];
  }
  return names;
}

QuantFormat quant_format_from_name(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<QuantFormat>(i);
  }
  fail(ErrorKind::usage,
       "unknown quantization format '" + std::string(name.substr(0, 40)) + "' (known: " + quant_format_names() + ")");
}

bool quantizes_rows(QuantFormat format) {
  return format == QuantFormat::int8 || format == QuantFormat::fp8 || format == QuantFormat::nvfp4_both;
}

DType code_type(QuantFormat format) {
  if (is_nvfp4(format)) return DType::u8;
  return is_int8(format) ? DType::i8 : DType::f8_e4m3;
}

DType scale_type(QuantFormat format) { return is_nvfp4(format) ? DType::f8_e4m3 : DType::f32; }

Shape code_shape(QuantFormat format, const Shape& weight) {
  return is_nvfp4(format) ? weight.with(1, weight[1] / 2) : weight;
}

Shape decoded_shape(QuantFormat format, const Shape& codes) {
  return is_nvfp4(format) ? codes.with(1, codes[1] * 2) : codes;
}

Shape scale_shape(QuantFormat format, const Shape& weight) {
  return is_nvfp4(format) ? Shape{weight[0], weight[1] / kNvfp4Block} : Shape{weight[0]};
}

QuantizedMatrix allocate_quantized(const Shape& weight, QuantFormat format) {
  check(weight.rank() >= 2 && weight[1] % kQuantizedRowMultiple == 0 && weight.product(2, weight.rank()) == 1,
        "a weight of this shape cannot be quantized");
  QuantizedMatrix out{Tensor(code_shape(format, weight), code_type(format)),
                      Tensor(scale_shape(format, weight), scale_type(format)),
                      {}};
  if (is_nvfp4(format)) out.scale_2 = Tensor(Shape{}, DType::f32);
  return out;
}

void expect_finite_weight(float magnitude) {
  if (!std::isfinite(magnitude)) fail(ErrorKind::model, "it has a value that is not finite");
}

float weight_scale_2(float peak) {
  expect_finite_weight(peak);
  return peak < kNoPeak ? 1 : peak / (kPeakFp4 * kPeakFp8);
}

QuantizedMatrix quantize_matrix(const Tensor& weight, QuantFormat format, ThreadPool* pool) {
  QuantizedMatrix out = allocate_quantized(weight.shape(), format);
  int64_t k = weight.shape()[1];
  if (is_nvfp4(format)) {
    quantize_blocks_of(weight, k, pool, out);
    return out;
  }
  for_rows(weight, k, pool, [&](int64_t i, const float* row) {
    checked_peak(row, k);
    quantize_row(format, row, k, static_cast<std::byte*>(out.codes.raw()) + i * k, out.scale.data<float>() + i);
  });
  return out;
}

void dequantize_row(const QuantizedView& m, int64_t row, int64_t begin, int64_t end, float* out) {
  if (is_nvfp4(m.format)) {
    const auto* codes = static_cast<const uint8_t*>(m.codes) + row * m.k / 2;
    const auto* scales = static_cast<const uint8_t*>(m.scale) + row * m.k / kNvfp4Block;
    const auto& pairs = fp4_pairs();
    for (int64_t j = begin; j < end; j += kNvfp4Block) {
      float scale = fp8_values()[scales[j / kNvfp4Block]] * m.scale_2;
      for (int64_t i = 0; i < kNvfp4Block && j + i < end; i += 2, out += 2) {
        const auto& pair = pairs[codes[(j + i) / 2]];
        out[0] = pair[0] * scale;
        out[1] = pair[1] * scale;
      }
    }
    return;
  }
  float scale = static_cast<const float*>(m.scale)[row];
  if (is_int8(m.format)) {
    const auto* codes = static_cast<const int8_t*>(m.codes) + row * m.k;
    for (int64_t j = begin; j < end; ++j) *out++ = static_cast<float>(codes[j]) * scale;
  } else {
    const auto* codes = static_cast<const uint8_t*>(m.codes) + row * m.k;
    for (int64_t j = begin; j < end; ++j) *out++ = fp8_values()[codes[j]] * scale;
  }
}

RowScale row_scale(QuantFormat format, float peak) {
  if (!std::isfinite(peak)) return {std::bit_cast<float>(0x7fc00000u), 0};
  if (peak < kNoPeak) return {0, 0};
  return {peak / peak_of(format), peak_of(format) / peak};
}

void quantize_row(QuantFormat format, const float* x, int64_t k, void* codes, float* scale) {
  RowScale s = row_scale(format, peak_magnitude(x, k));
  *scale = s.scale;
  if (s.inverse == 0) {
    std::memset(codes, 0, static_cast<size_t>(k));
  } else if (is_int8(format)) {
    auto* out = static_cast<int8_t*>(codes);
    for (int64_t i = 0; i < k; ++i) out[i] = int8_code(x[i] * s.inverse);
  } else {
    auto* out = static_cast<f8_e4m3*>(codes);
    for (int64_t i = 0; i < k; ++i) out[i] = f8_e4m3(x[i] * s.inverse);
  }
}

int64_t quantized_rows_bytes(QuantFormat format, int64_t m, int64_t k) {
  return is_nvfp4(format) ? Nvfp4Rows{m, k}.bytes() : quantized_rows_bytes(m, k);
}

void quantize_row_nvfp4(const float* x, const Nvfp4Rows& layout, int64_t i, void* rows) {
  auto* memory = static_cast<uint8_t*>(rows);
  uint8_t* codes = memory + layout.codes_at() + i * layout.k / 2;
  RowScale s = row_scale(QuantFormat::nvfp4_both, peak_magnitude(x, layout.k));
  std::memcpy(memory + layout.row_scales_at() + i * 4, &s.scale, 4);
  for (int64_t b = 0; b < layout.blocks(); ++b, codes += kNvfp4Block / 2) {
    float values[kNvfp4Block];
    for (int64_t j = 0; j < kNvfp4Block; ++j) values[j] = s.inverse == 0 ? 0 : x[b * kNvfp4Block + j] * s.inverse;
    memory[tiled_scale_at(i, b, layout.blocks())] = quantize_block_of_row(values, codes).bits;
  }
}

void dequantize_row_nvfp4(const void* rows, const Nvfp4Rows& layout, int64_t i, float* out) {
  const auto* memory = static_cast<const uint8_t*>(rows);
  const uint8_t* codes = memory + layout.codes_at() + i * layout.k / 2;
  float row_scale = 0;
  std::memcpy(&row_scale, memory + layout.row_scales_at() + i * 4, 4);
  for (int64_t b = 0; b < layout.blocks(); ++b) {
    float scale = fp8_values()[memory[tiled_scale_at(i, b, layout.blocks())]] * row_scale;
    for (int64_t j = 0; j < kNvfp4Block / 2; ++j, out += 2) {
      const auto& pair = fp4_pairs()[*codes++];
      out[0] = pair[0] * scale;
      out[1] = pair[1] * scale;
    }
  }
}

}  // namespace kinora
