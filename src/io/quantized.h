// Quantized weights in safetensors files. Beside the codes "X.weight" stand "X.weight_scale" and, of nvfp4,
// "X.weight_scale_2" (core/quantize.h has their types and shapes); the file's metadata says, under "quantization",
// which layers are quantized and how:
//   {"version":1,"format":"fp8","layers":{"blocks.0.to_q":"fp8","blocks.0.mod":"int8-weights", …}}
#pragma once

#include <map>
#include <string>

#include "core/quantize.h"
#include "io/weights.h"

namespace kinora {

struct FileQuantization {
  std::string format;                         // as was asked for; a layer may have another
  std::map<std::string, QuantFormat> layers;  // by the name of the weight without ".weight"
};

inline std::string scale_name(const std::string& weight) { return weight + "_scale"; }
inline std::string scale_2_name(const std::string& weight) { return weight + "_scale_2"; }

// What a file's metadata says; no layers when it says nothing. Throws Error(model) naming `file`. At most 1 MiB.
FileQuantization read_quantization(const std::map<std::string, std::string>& metadata, const std::string& file);
void write_quantization(const FileQuantization& quantization, std::map<std::string, std::string>& metadata);

// A component's config.json with a "quantization_config", by which other programs see that they cannot read the
// weights. Throws Error(model).
std::string add_quantization_config(const std::string& config, const std::string& file, const std::string& format);

// Checks the tensors of a quantized weight: types, shapes, and that every scale is finite and not negative. Throws
// Error(model) saying which is wrong and how.
void check_quantized(const Weights& weights, const std::string& weight, QuantFormat format);

}  // namespace kinora
