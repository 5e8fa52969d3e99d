#include "nn/params.h"

#include "ops/elementwise.h"

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
  if (!(tensor->shape() == stored)) {
    fail(ErrorKind::model, "tensor '" + path + "' in " + weights_->file_of(path) + " has shape " +
                               tensor->shape().str() + ", but config.json asks for " + stored.str());
  }
  if (!is_float(tensor->dtype())) {
    fail(ErrorKind::model, "tensor '" + path + "' in " + weights_->file_of(path) + " is stored as " +
                               std::string(dtype_name(tensor->dtype())) + "; F32, F16 and BF16 weights can be used");
  }
  used_->insert(path);
  return *tensor;
}

Value Params::get_as(const std::string& name, const Shape& stored, const Shape& wanted) const {
  return graph_->parameter(full(name), checked(name, stored).reshaped(wanted));
}

Value Params::get_rows(const std::string& name, const Shape& stored, int64_t begin, int64_t end) const {
  std::string range = "[" + std::to_string(begin) + ":" + std::to_string(end) + "]";
  return graph_->parameter(full(name) + range, checked(name, stored).rows(begin, end));
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
