// Which weights of a model are quantized, and doing it. The table that decides is in quantize.cpp and in
// docs/quantization.md; rules given by the user come before it.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/threads.h"
#include "io/weights.h"

namespace kinora {

// Layers whose path fits `pattern` ('*': any characters, '?': one) get this format, or none. A path is the component
// ("transformer", "text_encoder", "t5", "clip"), a dot, and the layer: the weight's name without ".weight".
struct QuantizationRule {
  std::string pattern;
  std::optional<QuantFormat> format;
};

struct Quantization {
  std::optional<QuantFormat> format;    // none: weights stay as they are
  std::vector<QuantizationRule> rules;  // the first that fits counts; then the built-in table
};

// "none" or a format's name; "PATTERN=FORMAT,PATTERN" (a pattern alone: keep). Throws Error(usage).
Quantization parse_quantization(const std::string& format, const std::string& rules);

bool fits_pattern(std::string_view pattern, std::string_view text);

// The format of a tensor, none when it stays: other tensors than weights of products, rows that are no multiple of 16,
// and what the rules keep.
std::optional<QuantFormat> format_for(const Quantization& quantization, const std::string& component,
                                      const std::string& tensor, const Tensor& value);

// A weight in a format, made by `quantizer` or, without one, by all threads; the pages of the original are given back.
// Throws Error(model) with its name.
QuantizedMatrix quantize_weight(const Weights& weights, const std::string& name, QuantFormat format, ThreadPool& pool,
                                const Quantizer& quantizer = {});

// Puts quantized weights in place of those that the table names, all or, when it throws, none. Throws Error(usage) when
// there are quantized ones already, and Error(cancelled) when `stop` becomes true.
void quantize_weights(Weights& weights, const std::string& component, const Quantization& quantization,
                      ThreadPool& pool, const Quantizer& quantizer = {}, const std::atomic<bool>* stop = nullptr);

// The number of quantized layers by format: "fp8: 120 layers, int8-weights: 4 layers"; empty when there are none.
std::string describe_quantization(const Weights& weights);

// |weight - decoded| / |weight|, root mean squares over all values.
double relative_error(const Tensor& weight, const QuantizedMatrix& quantized, QuantFormat format, ThreadPool& pool);

}  // namespace kinora
