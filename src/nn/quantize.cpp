#include "nn/quantize.h"

#include <chrono>
#include <cmath>
#include <cstdio>

#include "core/log.h"
#include "io/quantized.h"

namespace kinora {
namespace {

enum class Action { keep, weights_only };  // weights_only: as asked, but x stays as it is

struct TableRow {
  const char* pattern;
  Action action;
};

// What is not named here gets the format asked for.
constexpr TableRow kTable[] = {
    // What turns numbers into features, and the layers on both ends: few bytes, and every error there is seen.
    {"*embed*", Action::keep},
    {"*shared", Action::keep},
    {"*relative_attention_bias", Action::keep},
    {"transformer.caption_projection.*", Action::keep},
    {"transformer.proj_out", Action::keep},
    {"transformer.final_layer.*", Action::keep},
    {"transformer.img_in", Action::keep},
    {"transformer.txt_in", Action::keep},
    {"transformer.cond_in", Action::keep},
    {"transformer.time_in.*", Action::keep},
    {"transformer.vector_in.*", Action::keep},
    {"transformer.guidance_in.*", Action::keep},
    {"transformer.time_embed.*", Action::keep},
    // Modulation reads one row, so quantizing that gains nothing; its weights are a quarter of an MMDiT.
    {"transformer.*_mod.lin", Action::weights_only},
    {"transformer.*modulation.lin", Action::weights_only},
    // Language models have a few channels of very large activations, which a scale for each row does not survive.
    {"text_encoder.*", Action::weights_only},
    {"t5.*", Action::weights_only},
    {"clip.*", Action::keep},
};

QuantFormat weights_only(QuantFormat format) {
  if (format == QuantFormat::int8) return QuantFormat::int8_weights;
  if (format == QuantFormat::fp8) return QuantFormat::fp8_weights;
  if (format == QuantFormat::nvfp4_both) return QuantFormat::nvfp4;
  return format;
}

std::optional<QuantFormat> decide(const Quantization& quantization, const std::string& path) {
  for (const QuantizationRule& rule : quantization.rules) {
    if (fits_pattern(rule.pattern, path)) return rule.format;
  }
  for (const TableRow& row : kTable) {
    if (!fits_pattern(row.pattern, path)) continue;
    return row.action == Action::keep ? std::nullopt : std::optional(weights_only(*quantization.format));
  }
  return quantization.format;
}

constexpr std::string_view kSuffix = ".weight";

}  // namespace

bool fits_pattern(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {  // let the last star take one more
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

Quantization parse_quantization(const std::string& format, const std::string& rules) {
  Quantization result;
  if (!format.empty() && format != "none") result.format = quant_format_from_name(format);
  for (size_t at = 0; at < rules.size();) {
    size_t end = std::min(rules.find(',', at), rules.size());
    std::string rule = rules.substr(at, end - at);
    at = end + 1;
    rule.erase(0, rule.find_first_not_of(' '));
    rule.erase(rule.find_last_not_of(' ') + 1);
    if (rule.empty()) continue;
    size_t equals = rule.find('=');
    std::string name = equals == std::string::npos ? "keep" : rule.substr(equals + 1);
    if (equals == 0) fail(ErrorKind::usage, "a rule for layers, '" + rule + "', has no pattern before '='");
    result.rules.push_back({rule.substr(0, equals), std::nullopt});
    if (name != "keep") result.rules.back().format = quant_format_from_name(name);
  }
  if (!result.rules.empty() && !result.format)
    fail(ErrorKind::usage, "rules for quantized layers are given, but no format to quantize to");
  return result;
}

std::optional<QuantFormat> format_for(const Quantization& quantization, const std::string& component,
                                      const std::string& tensor, const Tensor& value) {
  const Shape& shape = value.shape();
  bool product = quantization.format && tensor.ends_with(kSuffix) && is_float(value.dtype()) && shape.rank() >= 2 &&
                 shape.product(2, shape.rank()) == 1;
  if (!product || shape.numel() == 0 || shape[1] % kQuantizedRowMultiple != 0) return std::nullopt;
  return decide(quantization, component + "." + tensor.substr(0, tensor.size() - kSuffix.size()));
}

QuantizedMatrix quantize_weight(const Weights& weights, const std::string& name, QuantFormat format, ThreadPool& pool,
                                const Quantizer& quantizer) {
  const Tensor& tensor = *weights.find(name);
  try {
    QuantizedMatrix result = quantizer ? quantizer(tensor, format) : quantize_matrix(tensor, format, &pool);
    tensor.release_pages();
    return result;
  } catch (const Error& error) {
    fail(error.kind(), "tensor '" + name + "' in " + weights.file_of(name) + " cannot be quantized: " + error.what());
  }
}

void quantize_weights(Weights& weights, const std::string& component, const Quantization& quantization,
                      ThreadPool& pool, const Quantizer& quantizer, const std::atomic<bool>* stop) {
  if (!quantization.format) return;
  std::string already = describe_quantization(weights);
  if (!already.empty()) {
    fail(ErrorKind::usage,
         weights.source() + " is quantized already (" + already + "); it can be used as it is, without --quantize");
  }
  size_t before = weights.bytes();
  auto start = std::chrono::steady_clock::now();
  std::vector<std::tuple<std::string, QuantFormat, QuantizedMatrix>> made;
  for (const std::string& name : weights.names()) {
    std::optional<QuantFormat> format = format_for(quantization, component, name, *weights.find(name));
    if (!format) continue;
    if (stop && stop->load(std::memory_order_relaxed)) fail(ErrorKind::cancelled, "stopped");
    made.emplace_back(name, *format, quantize_weight(weights, name, *format, pool, quantizer));
  }
  for (const auto& [name, format, q] : made) {
    weights.replace(name, q.codes);
    weights.set_format(name, format);
    weights.add(scale_name(name), q.scale, weights.file_of(name));
    if (q.scale_2.defined()) weights.add(scale_2_name(name), q.scale_2, weights.file_of(name));
  }
  auto passed = std::chrono::steady_clock::now() - start;
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.1f", std::chrono::duration<double>(passed).count());
  log(LogLevel::info, "quantized the " + component + " (" + describe_quantization(weights) + ") in " + seconds +
                          " s: " + std::to_string(before >> 20) + " MiB became " +
                          std::to_string(weights.bytes() >> 20) + " MiB");
}

std::string describe_quantization(const Weights& weights) {
  std::map<QuantFormat, int> counts;
  for (const std::string& name : weights.names()) {
    if (auto format = weights.format(name)) ++counts[*format];
  }
  std::string text;
  for (const auto& [format, count] : counts) {
    text += (text.empty() ? "" : ", ") + std::string(quant_format_name(format)) + ": " + std::to_string(count) +
            (count == 1 ? " layer" : " layers");
  }
  return text;
}

double relative_error(const Tensor& weight, const QuantizedMatrix& q, QuantFormat format, ThreadPool& pool) {
  int64_t n = weight.shape()[0], k = weight.shape()[1];
  float scale_2 = q.scale_2.defined() ? q.scale_2.data<float>()[0] : 0;
  QuantizedView view{format, q.codes.raw(), q.scale.raw(), scale_2, k};
  std::vector<double> errors(static_cast<size_t>(n)), totals(static_cast<size_t>(n));
  auto count = static_cast<size_t>(k);
  std::vector<std::vector<float>> memory(static_cast<size_t>(pool.size()), std::vector<float>(2 * count));
  pool.run(n, [&](int64_t i, int worker) {
    float *exact = memory[static_cast<size_t>(worker)].data(), *decoded = exact + k;
    to_float(weight.dtype(), weight.rows(i, i + 1).raw(), exact, count);
    dequantize_row(view, i, 0, k, decoded);
    double error = 0, total = 0;
    for (int64_t j = 0; j < k; ++j) {
      error += (double{exact[j]} - decoded[j]) * (double{exact[j]} - decoded[j]);
      total += double{exact[j]} * exact[j];
    }
    errors[static_cast<size_t>(i)] = error;
    totals[static_cast<size_t>(i)] = total;
  });
  double error = 0, total = 0;
  for (size_t i = 0; i < errors.size(); ++i) {
    error += errors[i];
    total += totals[i];
  }
  return total > 0 ? std::sqrt(error / total) : 0;
}

}  // namespace kinora
