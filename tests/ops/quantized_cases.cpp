// Op cases of quantized weights and rows. The truth of the primitive ops is written out again from the formulas in
// core/quantize.h; products are compared with their decompositions.
#include <bit>
#include <cmath>

#include "ops/op_cases.h"
#include "ops/quantize.h"
#include "support.h"

namespace kinora::test {
namespace {

using In = std::span<const Value>;
using Tensors = std::span<const Tensor>;
using Doubles = std::vector<double>;

QuantizedWeight random_weight(Graph& graph, QuantFormat format, int64_t n, int64_t k) {
  QuantizedMatrix q = quantize_matrix(random_tensor({n, k}, 71), format);
  QuantizedWeight weight{format, graph.parameter("codes", q.codes), graph.parameter("scale", q.scale), {}};
  if (q.scale_2.defined()) weight.scale_2 = graph.parameter("scale_2", q.scale_2);
  return weight;
}

double value_of_e4m3(uint8_t code) {
  int exponent = code >> 3 & 15, mantissa = code & 7;
  double magnitude = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
  return code & 0x80 ? -magnitude : magnitude;
}

constexpr double kFp4[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

Doubles decoded(QuantFormat format, int64_t n, int64_t k) {
  QuantizedMatrix q = quantize_matrix(random_tensor({n, k}, 71), format);
  const auto* codes = static_cast<const uint8_t*>(q.codes.raw());
  Doubles out;
  for (int64_t i = 0; i < n * k; ++i) {
    if (is_nvfp4(format)) {
      int code = codes[i / 2] >> (i % 2 ? 4 : 0) & 15;
      double scale = value_of_e4m3(static_cast<const uint8_t*>(q.scale.raw())[i / 16]);
      out.push_back((code & 8 ? -1 : 1) * kFp4[code & 7] * scale * q.scale_2.data<float>()[0]);
    } else {
      double code =
          q.codes.dtype() == DType::i8 ? static_cast<double>(std::bit_cast<int8_t>(codes[i])) : value_of_e4m3(codes[i]);
      out.push_back(code * q.scale.data<float>()[i / k]);
    }
  }
  return out;
}

// The nearest of magnitudes in ascending order; of two, that with an even place.
double nearest_of(std::span<const double> values, double x) {
  size_t best = 0;
  for (size_t i = 1; i < values.size(); ++i) {
    double error = std::abs(values[i] - x), least = std::abs(values[best] - x);
    if (error < least || (error == least && i % 2 == 0)) best = i;
  }
  return values[best];
}

// Rows of nvfp4 there and back, by search.
Doubles rounded_blocks(const Tensor& x) {
  Doubles scales;
  for (uint8_t code = 0; code < 0x7f; ++code) scales.push_back(value_of_e4m3(code));
  int64_t k = x.shape()[-1];
  Doubles out;
  for (int64_t i = 0; i < x.numel() / k; ++i) {
    const float* row = x.data<float>() + i * k;
    float peak = 0;
    for (int64_t j = 0; j < k; ++j) peak = std::max(peak, std::abs(row[j]));
    float row_scale = peak / 2688, inverse = 2688 / peak;
    for (int64_t b = 0; b < k; b += 16) {
      double block_peak = 0, least = INFINITY;
      for (int64_t j = b; j < b + 16; ++j) block_peak = std::max(block_peak, std::abs(double{row[j] * inverse}));
      Doubles best;
      for (double largest : {6, 4}) {
        double scale = nearest_of(scales, block_peak / largest), error = 0;
        Doubles values;
        for (int64_t j = b; j < b + 16; ++j) {
          double v = row[j] * inverse, magnitude = scale > 0 ? nearest_of(kFp4, std::abs(v) / scale) * scale : 0;
          error += (std::abs(v) - magnitude) * (std::abs(v) - magnitude);
          values.push_back((v < 0 ? -magnitude : magnitude) * row_scale);
        }
        if (error < least) {
          least = error;
          best = values;
        }
      }
      out.insert(out.end(), best.begin(), best.end());
    }
  }
  return out;
}

// Rows there and back.
Doubles rounded_rows(const Tensor& x, QuantFormat format) {
  if (is_nvfp4(format)) return rounded_blocks(x);
  int64_t k = x.shape()[-1];
  float limit = format == QuantFormat::int8 ? 127 : 448;
  Doubles out;
  for (int64_t i = 0; i < x.numel() / k; ++i) {
    const float* row = x.data<float>() + i * k;
    float peak = 0;
    for (int64_t j = 0; j < k; ++j) peak = std::max(peak, std::abs(row[j]));
    float scale = peak / limit, inverse = limit / peak;
    for (int64_t j = 0; j < k; ++j) {
      double value = row[j] * inverse;
      if (format == QuantFormat::fp8) {  // steps of 1/8 of the power of two below, at least 2^-9
        double step = std::ldexp(1, std::max(std::ilogb(value), -6) - 3);
        value = std::min(std::abs(std::nearbyint(value / step) * step), 448.0) * (value < 0 ? -1 : 1);
      } else {
        value = std::nearbyint(value);
      }
      out.push_back(value * scale);
    }
  }
  return out;
}

Value there_and_back(Value x, QuantFormat format) {
  return dequantize_rows(quantize_rows(x, format), format, x.shape().numel() / x.shape()[-1], x.shape()[-1]);
}

constexpr QuantFormat kAll[] = {QuantFormat::int8,        QuantFormat::int8_weights, QuantFormat::fp8,
                                QuantFormat::fp8_weights, QuantFormat::nvfp4,        QuantFormat::nvfp4_both};

std::string named(const std::string& op, QuantFormat format, const std::string& what = "") {
  return op + "/" + std::string(quant_format_name(format)) + what;
}

void add_rows(std::vector<OpCase>& c) {
  for (QuantFormat f : kAll) {
    c.push_back({.name = named("dequantize", f),
                 .shapes = {{5, 48}},
                 .build = [f](In x) { return dequantize(random_weight(x[0].graph(), f, 5, 48)); },
                 .truth = [f](Tensors) { return decoded(f, 5, 48); },
                 .gradient = false});
    if (!quantizes_rows(f)) continue;
    for (const char* op : {"quantize_rows", "dequantize_rows"}) {
      c.push_back({.name = named(op, f),
                   .shapes = {{7, 80}},
                   .build = [f](In x) { return there_and_back(x[0], f); },
                   .truth = [f](Tensors in) { return rounded_rows(in[0], f); },
                   .low = -3,
                   .high = 3,
                   .gradient = false});
    }
  }
}

void add_products(std::vector<OpCase>& c) {
  for (QuantFormat f : kAll) {
    bool smooth = !quantizes_rows(f);
    c.push_back({.name = named("quantized_linear", f),
                 .shapes = {{2, 12, 48}, {20}},
                 .build =
                     [f](In x) {
                       return quantized_linear(x[0], random_weight(x[0].graph(), f, 20, 48),
                                               {.bias = x[1], .act = "silu"});
                     },
                 .terms = 48,
                 .gradient = smooth});
    c.push_back({.name = named("quantized_linear", f, "_few_rows"),
                 .shapes = {{3, 64}, {3, 130}, {1, 130}},
                 .build =
                     [f](In x) {
                       return quantized_linear(x[0], random_weight(x[0].graph(), f, 130, 64),
                                               {.gate = x[2], .residual = x[1]});
                     },
                 .terms = 64,
                 .gradient = smooth});
    c.push_back({.name = named("quantized_linear", f, "_blocks"),
                 .shapes = {{2, 290, 144}, {200}, {2, 1, 200}, {2, 290, 200}},
                 .build =
                     [f](In x) {
                       return quantized_linear(x[0], random_weight(x[0].graph(), f, 200, 144),
                                               {.bias = x[1], .gate = x[2], .residual = x[3]});
                     },
                 .terms = 144,
                 .gradient = false});
    if (smooth) continue;
    c.push_back({.name = named("quantized_linear_rows", f),
                 .shapes = {{4, 33, 32}, {24}},
                 .build =
                     [f](In x) {
                       return quantized_linear_rows(quantize_rows(x[0], f), random_weight(x[0].graph(), f, 24, 32),
                                                    {.bias = x[1], .act = "gelu_tanh"}, {4, 33}, x[0].dtype());
                     },
                 .terms = 32,
                 .gradient = false});
  }
}

}  // namespace

void add_quantized(std::vector<OpCase>& c) {
  add_rows(c);
  add_products(c);
}

}  // namespace kinora::test
