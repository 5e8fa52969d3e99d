#include "graph/graph.h"

#include <cstdio>

namespace kinora {

void Attrs::set(std::string name, Attr value) {
  for (auto& [key, old] : entries_) {
    if (key == name) {
      old = std::move(value);
      return;
    }
  }
  entries_.emplace_back(std::move(name), std::move(value));
}

bool Attrs::has(std::string_view name) const {
  for (const auto& [key, value] : entries_) {
    if (key == name) return true;
  }
  return false;
}

const Attr& Attrs::at(std::string_view name) const {
  for (const auto& [key, value] : entries_) {
    if (key == name) return value;
  }
  fail(ErrorKind::internal, "attribute '" + std::string(name) + "' is missing");
}

int64_t Attrs::integer(std::string_view name) const { return std::get<int64_t>(at(name)); }
double Attrs::real(std::string_view name) const { return std::get<double>(at(name)); }
const Ints& Attrs::ints(std::string_view name) const { return std::get<Ints>(at(name)); }
const std::string& Attrs::text(std::string_view name) const { return std::get<std::string>(at(name)); }

std::string Attrs::str() const {
  std::string text;
  for (const auto& [key, value] : entries_) {
    if (!text.empty()) text += ' ';
    text += key + "=";
    if (const auto* integer = std::get_if<int64_t>(&value)) {
      text += std::to_string(*integer);
    } else if (const auto* real = std::get_if<double>(&value)) {
      char buffer[32];
      std::snprintf(buffer, sizeof buffer, "%g", *real);
      text += buffer;
    } else if (const auto* ints = std::get_if<Ints>(&value)) {
      text += "[";
      for (size_t i = 0; i < ints->size(); ++i) text += (i ? "," : "") + std::to_string((*ints)[i]);
      text += "]";
    } else {
      text += std::get<std::string>(value);
    }
  }
  return text;
}

const OpDef kInputOp{.name = "input"};
const OpDef kParameterOp{.name = "parameter"};
const OpDef kConstantOp{.name = "constant"};

bool is_leaf(const Node& node) { return node.op == &kInputOp || node.op == &kParameterOp || node.op == &kConstantOp; }

const Shape& Value::shape() const { return graph_->node(id_).spec.shape; }
DType Value::dtype() const { return graph_->node(id_).spec.dtype; }

NodeId Graph::push(Node node) {
  nodes_.push_back(std::move(node));
  return static_cast<NodeId>(nodes_.size()) - 1;
}

Value Graph::input(std::string name, Shape shape, DType dtype) {
  return {
      this,
      push({.op = &kInputOp, .inputs = {}, .attrs = {}, .spec = {shape, dtype}, .name = std::move(name), .value = {}})};
}

Value Graph::parameter(std::string name, Tensor value) {
  TensorSpec spec{value.shape(), value.dtype()};
  return {this, push({.op = &kParameterOp,
                      .inputs = {},
                      .attrs = {},
                      .spec = spec,
                      .name = std::move(name),
                      .value = std::move(value)})};
}

Value Graph::constant(Tensor value) {
  TensorSpec spec{value.shape(), value.dtype()};
  return {
      this,
      push({.op = &kConstantOp, .inputs = {}, .attrs = {}, .spec = spec, .name = scope, .value = std::move(value)})};
}

Value Graph::scalar(double value, DType dtype) {
  return constant(Tensor::from<float>({}, {static_cast<float>(value)}).to(dtype));
}

Value Graph::append(const OpDef& op, std::span<const Value> inputs, Attrs attrs) {
  std::vector<TensorSpec> specs;
  std::vector<NodeId> ids;
  for (const Value& input : inputs) {
    check(input.defined() && &input.graph() == this, "a node's inputs must belong to its graph");
    specs.push_back(node(input.id()).spec);
    ids.push_back(input.id());
  }
  try {
    TensorSpec spec = op.infer(specs, attrs);
    return {this, push({.op = &op,
                        .inputs = std::move(ids),
                        .attrs = std::move(attrs),
                        .spec = spec,
                        .name = scope,
                        .value = {}})};
  } catch (const Error& error) {
    std::string given;
    for (const TensorSpec& spec : specs) given += (given.empty() ? "" : ", ") + spec.shape.str();
    fail(error.kind(),
         "[" + std::string(op.name) + (scope.empty() ? "" : " in " + scope) + "] " + error.what() + " (inputs " +
             given + ")",
         error.where());
  }
}

void Graph::output(std::string name, Value value) { outputs_.emplace_back(std::move(name), value.id()); }

Value apply(const OpDef& op, std::span<const Value> inputs, Attrs attrs) {
  check(!inputs.empty() && inputs[0].defined(), "an op needs at least one input");
  return inputs[0].graph().append(op, inputs, std::move(attrs));
}

Value apply(const OpDef& op, std::initializer_list<Value> inputs, Attrs attrs) {
  return apply(op, std::span<const Value>(inputs.begin(), inputs.size()), std::move(attrs));
}

std::string to_text(const Graph& graph) {
  std::string text;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& node = graph.nodes()[i];
    text += "%" + std::to_string(i) + " = " + std::string(node.op->name) + "(";
    for (size_t k = 0; k < node.inputs.size(); ++k) text += (k ? ", %" : "%") + std::to_string(node.inputs[k]);
    text += ")";
    if (std::string attrs = node.attrs.str(); !attrs.empty()) text += " " + attrs;
    text += " : " + std::string(dtype_name(node.spec.dtype)) + " " + node.spec.shape.str();
    if (!node.name.empty()) text += "   # " + node.name;
    text += "\n";
  }
  for (const auto& [name, id] : graph.outputs()) text += "output " + name + " = %" + std::to_string(id) + "\n";
  return text;
}

}  // namespace kinora
