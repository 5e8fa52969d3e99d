#include "io/quantized.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace kinora {
namespace {

using Json = nlohmann::json;

constexpr const char* kKey = "quantization";
constexpr size_t kMaxText = size_t{1} << 20;
constexpr int kVersion = 1;

// Of floats, the first that is no scale; of E4M3, the first code that is none.
bool bad_scales(const Tensor& scale) {
  if (scale.dtype() == DType::f32) {
    for (float s : scale.values<float>()) {
      if (!(s >= 0) || std::isinf(s)) return true;
    }
    return false;
  }
  const auto* codes = static_cast<const uint8_t*>(scale.raw());
  uint8_t worst = 0;
  for (int64_t i = 0; i < scale.numel(); ++i) worst = std::max(worst, codes[i]);
  return worst >= 0x7f;  // NaN, or negative
}

}  // namespace

FileQuantization read_quantization(const std::map<std::string, std::string>& metadata, const std::string& file) {
  FileQuantization result;
  auto found = metadata.find(kKey);
  if (found == metadata.end()) return result;
  auto refuse = [&](const std::string& what) {
    fail(ErrorKind::model, file + " is damaged: its \"quantization\" metadata " + what);
  };
  if (found->second.size() > kMaxText) refuse("is longer than 1 MiB");
  Json json = Json::parse(found->second, nullptr, false);
  if (!json.is_object() || !json.contains("version") || !json.contains("layers")) refuse("is no object as expected");
  if (json["version"] != kVersion) refuse("is of a version that this program does not know (it knows 1)");
  if (!json["layers"].is_object()) refuse("has no object of layers");
  if (json.contains("format") && json["format"].is_string()) result.format = json["format"].get<std::string>();
  for (const auto& [layer, format] : json["layers"].items()) {
    if (!format.is_string()) refuse("gives layer '" + layer.substr(0, 80) + "' no format");
    try {
      result.layers[layer] = quant_format_from_name(format.get<std::string>());
    } catch (const Error& error) {
      refuse("names an " + std::string(error.what()));
    }
  }
  return result;
}

void write_quantization(const FileQuantization& quantization, std::map<std::string, std::string>& metadata) {
  Json layers = Json::object();
  for (const auto& [layer, format] : quantization.layers) layers[layer] = quant_format_name(format);
  metadata[kKey] = Json{{"version", kVersion}, {"format", quantization.format}, {"layers", layers}}.dump();
}

std::string add_quantization_config(const std::string& config, const std::string& file, const std::string& format) {
  using Ordered = nlohmann::ordered_json;
  Ordered json = Ordered::parse(config, nullptr, false);
  if (!json.is_object()) fail(ErrorKind::model, file + " is no JSON object");
  json["quantization_config"] = {{"quant_method", "kinora"}, {"format", format}};
  return json.dump(2) + "\n";
}

void check_quantized(const Weights& weights, const std::string& name, QuantFormat format) {
  auto refuse = [&](const std::string& tensor, const std::string& what) {
    fail(ErrorKind::model, weights.file_of(name) + " is damaged: tensor '" + tensor + "' " + what);
  };
  auto expect = [&](const std::string& tensor_name, DType dtype, const Shape& shape) {
    const Tensor* tensor = weights.find(tensor_name);
    if (!tensor)
      refuse(tensor_name, "of a weight quantized to " + std::string(quant_format_name(format)) + " is missing");
    if (tensor->dtype() != dtype || !(tensor->shape() == shape)) {
      refuse(tensor_name, "is " + std::string(dtype_name(tensor->dtype())) + " " + tensor->shape().str() + ", but " +
                              std::string(quant_format_name(format)) + " needs " + std::string(dtype_name(dtype)) +
                              " " + shape.str());
    }
    return *tensor;
  };
  const Tensor* codes = weights.find(name);
  if (!codes) refuse(name, "is quantized by the metadata but missing");
  const Shape& stored = codes->shape();
  expect(name, code_type(format), stored);
  Shape shape = stored.rank() >= 2 ? decoded_shape(format, stored) : stored;
  if (shape.rank() < 2 || shape[1] % kQuantizedRowMultiple != 0 || shape.product(2, shape.rank()) != 1) {
    refuse(name, "has shape " + stored.str() + ", which no quantized weight has");
  }
  Tensor scale = expect(scale_name(name), scale_type(format), scale_shape(format, shape));
  if (bad_scales(scale)) refuse(scale_name(name), "has a scale that is negative or not finite");
  scale.release_pages();
  if (is_nvfp4(format) && bad_scales(expect(scale_2_name(name), DType::f32, Shape{}))) {
    refuse(scale_2_name(name), "is negative or not finite");
  }
}

}  // namespace kinora
