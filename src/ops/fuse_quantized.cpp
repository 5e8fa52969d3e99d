#include "ops/fuse_quantized.h"

#include <algorithm>
#include <map>

#include "graph/rewrite.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/shaping.h"
#include "ops/table.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;
using Specs = std::span<const TensorSpec>;

QuantFormat format_of(const Attrs& attrs) { return quant_format_from_name(attrs.text("format")); }
std::string name_of(QuantFormat format) { return std::string(quant_format_name(format)); }

// Rows of nvfp4_both are a step of their own.
bool has_fused_rows(QuantFormat format) { return quantizes_rows(format) && !is_nvfp4(format); }
void expect_row_codes(const Attrs& attrs) {
  if (!has_fused_rows(format_of(attrs))) fail(ErrorKind::internal, "such rows are of int8 or fp8");
}

// What `op` gives, as quantized rows.
TensorSpec infer_rows(const OpDef& op, Specs in, const Attrs& attrs) {
  TensorSpec plain = op.infer(in, attrs);
  expect_row_codes(attrs);
  return kQuantizeRows.infer(Specs(&plain, 1), attrs);
}

TensorSpec infer_layer_norm_rows(Specs in, const Attrs& attrs) { return infer_rows(kLayerNorm, in, attrs); }
TensorSpec infer_rms_norm_rows(Specs in, const Attrs& attrs) { return infer_rows(kRmsNorm, in, attrs); }
TensorSpec infer_act_mul_rows(Specs in, const Attrs& attrs) {
  expect_inputs(in, 2);
  expect_shape("the second input", in[1].shape, in[0].shape);
  return infer_rows(kActMul, in, attrs);
}

int64_t row_length(const Shape& shape) { return shape[-1]; }
int64_t row_count(const Shape& shape) { return shape.product(0, shape.rank() - 1); }

TensorSpec infer_mul_add_rows(Specs in, const Attrs& attrs) {
  bool norm = attrs.integer("norm");
  expect_inputs(in, 3, norm ? 5 : 3);
  TensorSpec sum = kMulAdd.infer(in.first(3), attrs);
  expect_shape("the sum", sum.shape, in[2].shape);
  if (norm) {
    std::vector<TensorSpec> normed(in.begin() + 2, in.end());
    kLayerNorm.infer(normed, attrs);
  }
  expect_row_codes(attrs);
  TensorSpec rows = kQuantizeRows.infer(Specs(&sum, 1), attrs);
  return {{bytes_before_made(sum) + rows.shape[0]}, DType::u8};
}

Value input_or_none(Inputs in, size_t i) { return i < in.size() ? in[i] : Value(); }

Value decompose_layer_norm_rows(Inputs in, const Attrs& attrs) {
  Value y = layer_norm(in[0], attrs.real("eps"), input_or_none(in, 1), input_or_none(in, 2));
  return quantize_rows(y, format_of(attrs));
}
Value decompose_rms_norm_rows(Inputs in, const Attrs& attrs) {
  return quantize_rows(apply(kRmsNorm, std::vector(in.begin(), in.end()), attrs), format_of(attrs));
}
Value decompose_act_mul_rows(Inputs in, const Attrs& attrs) {
  return quantize_rows(act_mul(in[0], in[1], attrs.text("act")), format_of(attrs));
}

Value bytes_of(Value x) { return part(x, 0, {static_cast<int64_t>(node_of(x).spec.bytes())}, DType::u8); }

Value decompose_mul_add_rows(Inputs in, const Attrs& attrs) {
  Value sum = mul_add(in[0], in[1], in[2]), y = sum;
  if (attrs.integer("norm")) y = layer_norm(sum, attrs.real("eps"), input_or_none(in, 3), input_or_none(in, 4));
  std::vector<Value> parts{bytes_of(sum)};
  if (int64_t gap = bytes_before_made({sum.shape(), sum.dtype()}) - parts[0].shape()[0]) {
    parts.push_back(sum.graph().constant(Tensor::zeros({gap}).to(DType::u8)));
  }
  parts.push_back(quantize_rows(y, format_of(attrs)));
  return concat(parts, 0);
}

std::vector<Value> no_gradient(Inputs in, const Attrs&, Value, Value) { return std::vector<Value>(in.size()); }

std::vector<Value> present(std::initializer_list<Value> values) {
  std::vector<Value> result;
  for (const Value& value : values) {
    if (value.defined()) result.push_back(value);
  }
  return result;
}

// `made` as quantized rows, when there is an op for that.
Value as_rows(Value made, QuantFormat format) {
  const Node& n = node_of(made);
  if (n.op == &kLayerNorm) {
    return layer_norm_rows(input_of(made, 0), format, n.attrs.real("eps"), input_of(made, 1), input_of(made, 2));
  }
  if (n.op == &kRmsNorm && !n.attrs.has("act")) {
    Attrs attrs = n.attrs;
    attrs.set("format", name_of(format));
    return apply(kRmsNormRows, present({input_of(made, 0), input_of(made, 1), input_of(made, 2)}), attrs);
  }
  if (n.op == &kActMul) return act_mul_rows(input_of(made, 0), input_of(made, 1), format, n.attrs.text("act"));
  return Value();
}

}  // namespace

const OpDef kLayerNormRows{"layer_norm_rows", infer_layer_norm_rows, no_gradient, decompose_layer_norm_rows};
const OpDef kRmsNormRows{"rms_norm_rows", infer_rms_norm_rows, no_gradient, decompose_rms_norm_rows};
const OpDef kActMulRows{"act_mul_rows", infer_act_mul_rows, no_gradient, decompose_act_mul_rows};
const OpDef kMulAddRows{"mul_add_rows", infer_mul_add_rows, no_gradient, decompose_mul_add_rows};

Value mul_add_rows(Value a, Value b, Value c, QuantFormat format, const std::optional<RowNorm>& norm) {
  Value scale = norm ? norm->scale : Value(), shift = norm ? norm->shift : Value();
  return apply(kMulAddRows, present({a, b, c, scale, shift}),
               {{"format", name_of(format)}, {"norm", int64_t{norm.has_value()}}, {"eps", norm ? norm->eps : 0.0}});
}

Value rows_of(Value packed, const Shape& shape, DType dtype) {
  int64_t bytes = quantized_rows_bytes(row_count(shape), row_length(shape));
  return part(packed, bytes_before_made({shape, dtype}), {bytes}, DType::u8);
}

Value layer_norm_rows(Value x, QuantFormat format, double eps, Value scale, Value shift) {
  return apply(kLayerNormRows, present({x, scale, shift}), {{"eps", eps}, {"format", name_of(format)}});
}

Value rms_norm_rows(Value x, QuantFormat format, Value weight, Value bias, double eps, double offset) {
  return apply(kRmsNormRows, present({x, weight, bias}),
               {{"eps", eps}, {"offset", offset}, {"format", name_of(format)}});
}

Value act_mul_rows(Value a, Value b, QuantFormat format, const std::string& act) {
  return apply(kActMulRows, {a, b}, {{"act", act}, {"format", name_of(format)}});
}

Graph fuse_quantized_rows(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph&, const Node& node, Inputs inputs) {
    if (node.op != &kQuantizeRows || !has_fused_rows(format_of(node.attrs))) return Value();
    NodeId id = node.inputs[0];
    Value made = inputs[0];
    auto alone = [&] { return users[static_cast<size_t>(id)] == 1; };
    // A reshape that keeps the last axis keeps the rows.
    while (graph.node(id).op == &kReshape && alone()) {
      id = graph.node(id).inputs[0];
      Value before = input_of(made, 0);
      if (before.shape().rank() == 0 || before.shape()[-1] != made.shape()[-1]) return Value();
      made = before;
    }
    return alone() ? as_rows(made, format_of(node.attrs)) : Value();
  });
}

namespace {

using Users = std::vector<std::vector<NodeId>>;

// Whether `node` alone reads the sum, or reads it first.
bool reads_first(const Users& users, NodeId sum, NodeId reader, NodeId own) {
  return std::ranges::none_of(users[static_cast<size_t>(sum)],
                              [&](NodeId user) { return user != reader && user < own; });
}

// A norm with one weight and nothing else.
bool is_weighted_norm(const Node& node, const OpDef& op, size_t weight) {
  const Attrs& a = node.attrs;
  return node.op == &op && node.inputs.size() == weight + 1 &&
         a == Attrs{{"eps", a.real("eps")}, {"offset", a.real("offset")}};
}

// The rms_norm_add that `node` norms before anything else reads it; null when there is none.
const Node* normed_sum(const Graph& graph, const Node& node, NodeId own, const Users& users) {
  if (!is_weighted_norm(node, kRmsNorm, 1)) return nullptr;
  const Node& sum = graph.node(node.inputs[0]);
  return is_weighted_norm(sum, kRmsNormAdd, 2) && reads_first(users, node.inputs[0], own, own) ? &sum : nullptr;
}

// The mul_add that `node` makes rows of, or norms, before anything else reads it, or the rms_norm_add; null when there
// is none.
const Node* summed(const Graph& graph, const Node& node, NodeId own, const Users& users) {
  if (node.op == &kRmsNorm) return normed_sum(graph, node, own, users);
  bool norms = node.op == &kLayerNormRows || node.op == &kLayerNorm;
  if (node.op != &kQuantizeRows && !norms) return nullptr;
  if (!norms && !has_fused_rows(format_of(node.attrs))) return nullptr;
  if (norms && node.inputs.size() == 2) return nullptr;
  NodeId id = node.inputs[0], reader = own;
  while (graph.node(id).op == &kReshape) {
    const Node& before = graph.node(graph.node(id).inputs[0]);
    bool same_rows = before.spec.shape.rank() > 0 && before.spec.shape[-1] == graph.node(id).spec.shape[-1];
    if (!same_rows || node.op != &kQuantizeRows || users[static_cast<size_t>(id)].size() != 1) return nullptr;
    reader = id;
    id = graph.node(id).inputs[0];
  }
  const Node& sum = graph.node(id);
  if (sum.op != &kMulAdd || !(graph.node(sum.inputs[2]).spec.shape == sum.spec.shape)) return nullptr;
  std::vector<NodeId> others{sum.inputs[0], sum.inputs[1]};
  others.insert(others.end(), node.inputs.begin() + 1, node.inputs.end());
  for (NodeId other : others) {
    const Shape& shape = graph.node(other).spec.shape;
    if (shape.rank() == 0 || shape[-1] != sum.spec.shape[-1]) return nullptr;
  }
  return reads_first(users, id, reader, own) ? &sum : nullptr;
}

// Who reads each node: live nodes by id, and for outputs a reader before all of them.
Users find_users(const Graph& graph) {
  Users users(graph.nodes().size());
  std::vector<bool> live = live_nodes(graph);
  for (size_t i = 0; i < users.size(); ++i) {
    if (!live[i]) continue;
    for (NodeId input : graph.nodes()[i].inputs) users[static_cast<size_t>(input)].push_back(static_cast<NodeId>(i));
  }
  for (const auto& [name, id] : graph.outputs()) users[static_cast<size_t>(id)].push_back(-1);
  return users;
}

// A sum and the norm of it that `node` is, whose other inputs are `now`.
Value with_norm(Value sum, const Node& node, Inputs now) {
  double eps = node.attrs.real("eps");
  if (node.op == &kLayerNorm) {
    return mul_add_norm(input_of(sum, 0), input_of(sum, 1), input_of(sum, 2), eps, input_or_none(now, 1),
                        input_or_none(now, 2));
  }
  const Attrs& first = node_of(sum).attrs;
  return rms_norm_add_norm(input_of(sum, 0), input_of(sum, 1),
                           {input_of(sum, 2), first.real("eps"), first.real("offset")},
                           {now[1], eps, node.attrs.real("offset")});
}

}  // namespace

Graph fuse_sums_and_rows(const Graph& graph) {
  Users users = find_users(graph);
  std::map<const Node*, const Node*> sums;  // by the node that makes rows
  std::map<const Node*, int> makers;        // of each sum
  for (size_t i = 0; i < users.size(); ++i) {
    const Node& node = graph.nodes()[i];
    const Node* sum = users[i].empty() ? nullptr : summed(graph, node, static_cast<NodeId>(i), users);
    if (sum && makers[sum]++ == 0) sums[&node] = sum;
  }
  std::map<const Node*, Value> plain;  // the sum as it was, which nothing reads in the end
  std::map<NodeId, Value> moved;       // what its later readers read
  return rewrite(graph, [&](Graph& target, const Node& node, Inputs inputs) {
    std::vector<Value> now(inputs.begin(), inputs.end());
    bool other = false;
    for (Value& value : now) {
      auto found = moved.find(value.id());
      if (found == moved.end()) continue;
      value = found->second;
      other = true;
    }
    if (makers.contains(&node)) {
      plain[&node] = target.append(*node.op, now, node.attrs);
      return plain[&node];
    }
    auto found = sums.find(&node);
    if (found == sums.end()) return other ? target.append(*node.op, now, node.attrs) : Value();
    const TensorSpec& sum = found->second->spec;
    Value before = plain.at(found->second);
    if (node.op == &kLayerNorm || node.op == &kRmsNorm) {
      Value packed = with_norm(before, node, now);
      moved[before.id()] = sum_of(packed, sum.shape, sum.dtype);
      return normed_of(packed, sum.shape, sum.dtype);
    }
    std::optional<RowNorm> norm;
    if (node.op == &kLayerNormRows) {
      norm = RowNorm{node.attrs.real("eps"), input_or_none(now, 1), input_or_none(now, 2)};
    }
    Value packed =
        mul_add_rows(input_of(before, 0), input_of(before, 1), input_of(before, 2), format_of(node.attrs), norm);
    moved[before.id()] = sum_of(packed, sum.shape, sum.dtype);
    return rows_of(packed, sum.shape, sum.dtype);
  });
}

}  // namespace kinora
