#include "nn/params.h"

#include "io/quantized.h"
#include "ops/elementwise.h"
#include "ops/quantize.h"
#include "ops/shaping.h"

namespace kinora {

Params::Params(Graph& graph, const Weights& weights)
    : graph_(&graph), weights_(&weights), used_(std::make_shared<std::set<std::string>>()) {}

Params Params::operator/(const std::string& name) const {
  Params child = *this;
  child.path_ = full(name);
  return child;
}

bool Params::has(const std::string& name) const { return weights_->find(full(name)) != nullptr; }

DType Params::stored(const std::string& name) const {
  const Tensor* tensor = weights_->find(full(name));
  return tensor ? tensor->dtype() : DType::f32;
}

const Tensor& Params::checked(const std::string& name, const Shape& stored) const {
  std::string path = full(name);
  const Tensor* tensor = weights_->find(path);
  if (!tensor) {
    fail(ErrorKind::model, "tensor '" + path + "' " + stored.str() + " is missing from " + weights_->source() +
                               " (does config.json belong to these weights?)");
  }
  if (Shape shape = weights_->shape_of(path); !(shape == stored)) {
    fail(ErrorKind::model, "tensor '" + path + "' in " + weights_->file_of(path) + " has shape " + shape.str() +
                               ", but config.json asks for " + stored.str());
  }
  if (!is_float(tensor->dtype()) && !weights_->format(path)) {
    fail(ErrorKind::model, "tensor '" + path + "' in " + weights_->file_of(path) + " is stored as " +
                               std::string(dtype_name(tensor->dtype())) +
                               "; F32, F16 and BF16 weights can be used, and what `kinora quantize` makes of them");
  }
  used_->insert(path);
  return *tensor;
}

Value Params::dequantized(const std::string& name, QuantFormat format, int64_t begin, int64_t end,
                          const std::string& range) const {
  auto part = [&](const std::string& path, bool by_rows) {
    used_->insert(path);
    const Tensor& whole = *weights_->find(path);
    Tensor tensor = !by_rows || range.empty() ? whole : whole.rows(begin, end);
    const Shape& s = tensor.shape();
    return graph_->parameter(path + range, s.rank() > 2 ? tensor.reshaped({s[0], s[1]}) : tensor);
  };
  std::string path = full(name);
  QuantizedWeight weight{format, part(path, true), part(scale_name(path), true), {}};
  if (is_nvfp4(format)) weight.scale_2 = part(scale_2_name(path), false);
  return dequantize(weight);
}

Value Params::get_as(const std::string& name, const Shape& stored, const Shape& wanted) const {
  const Tensor& tensor = checked(name, stored);
  if (auto format = weights_->format(full(name))) {
    Value value = dequantized(name, *format, 0, stored[0], "");
    return value.shape() == wanted ? value : reshape(value, wanted);
  }
  return graph_->parameter(full(name), tensor.reshaped(wanted));
}

Value Params::get_rows(const std::string& name, const Shape& stored, int64_t begin, int64_t end) const {
  const Tensor& tensor = checked(name, stored);
  std::string range = "[" + std::to_string(begin) + ":" + std::to_string(end) + "]";
  if (auto format = weights_->format(full(name))) return dequantized(name, *format, begin, end, range);
  return graph_->parameter(full(name) + range, tensor.rows(begin, end));
}

Value Params::get(const std::string& name, const Shape& shape) const { return get_as(name, shape, shape); }
Value Params::f32(const std::string& name, const Shape& shape) const { return cast(get(name, shape), DType::f32); }

void Params::expect_all_used(const std::string& prefix) const {
  std::string extra;
  int count = 0;
  for (const std::string& name : weights_->names()) {
    if (!name.starts_with(prefix) || used_->count(name)) continue;
    if (++count <= 3) extra += (extra.empty() ? "'" : ", '") + name + "'";
  }
  if (count == 0) return;
  fail(ErrorKind::model, weights_->source() + " holds " + std::to_string(count) +
                             " tensor(s) that config.json does not account for: " + extra + (count > 3 ? ", …" : ""));
}

}  // namespace kinora
