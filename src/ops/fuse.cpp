#include "ops/fuse.h"

#include <array>
#include <map>

#include "graph/rewrite.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/shaping.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;

bool is_parameter(const Graph& graph, NodeId id) { return graph.node(id).op == &kParameterOp; }

// Linears that may be joined: the same x, activation and types, weights that are parameters, with a bias or without.
struct LinearGroup {
  std::vector<NodeId> members;
  int64_t rows = 0;  // of the joined weight
  Value joined;
};

constexpr int64_t kMostJoinedRows = 32768;  // keeps the joined result, which lives until its last reader, in bounds

struct LinearKey {
  NodeId x;
  std::string act;
  DType weight, bias;
  bool biased;
  auto operator<=>(const LinearKey&) const = default;
};

std::vector<LinearGroup> group_linears(const Graph& graph) {
  std::vector<LinearGroup> groups;
  std::map<LinearKey, size_t> open;
  std::vector<bool> live = live_nodes(graph);
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& node = graph.nodes()[i];
    if (!live[i] || node.op != &kLinear || !is_parameter(graph, node.inputs[1])) continue;
    bool biased = node.inputs.size() == 3;
    if (biased && !is_parameter(graph, node.inputs[2])) continue;
    LinearKey key{node.inputs[0], node.attrs.text("act"), graph.node(node.inputs[1]).spec.dtype,
                  biased ? graph.node(node.inputs[2]).spec.dtype : DType::f32, biased};
    int64_t rows = node.spec.shape[-1];
    auto found = open.find(key);
    if (found == open.end() || groups[found->second].rows + rows > kMostJoinedRows) {
      open[key] = groups.size();
      groups.emplace_back();
      found = open.find(key);
    }
    groups[found->second].members.push_back(static_cast<NodeId>(i));
    groups[found->second].rows += rows;
  }
  return groups;
}

Value join(const Graph& graph, Graph& target, const LinearGroup& group, Value x) {
  std::vector<Value> weights, biases;
  for (NodeId member : group.members) {
    const Node& linear_node = graph.node(member);
    auto again = [&](size_t input) {
      const Node& leaf = graph.node(linear_node.inputs[input]);
      return target.parameter(leaf.name, leaf.value);
    };
    weights.push_back(again(1));
    if (linear_node.inputs.size() == 3) biases.push_back(again(2));
  }
  return linear(x, concat(weights, 0), biases.empty() ? Value() : concat(biases, 0),
                graph.node(group.members[0]).attrs.text("act"));
}

const Node& source(const Value& value) { return value.graph().node(value.id()); }
Value input_of(const Value& value, size_t k) { return Value(&value.graph(), source(value).inputs[k]); }

// A norm of float32 that writes its result in another type; undefined when it is none.
Value norm_to(Graph& target, DType to, Value value) {
  const Node& n = source(value);
  if (n.op != &kRmsNorm || value.dtype() != DType::f32 || n.attrs.has("to")) return Value();
  std::vector<Value> inputs;
  for (NodeId id : n.inputs) inputs.emplace_back(&target, id);
  Attrs attrs = n.attrs;
  attrs.set("to", static_cast<int64_t>(to));
  return target.append(kRmsNorm, inputs, attrs);
}

// The fused form of a sum whose term `inputs[k]` is read by nobody else; undefined when there is none. `linear_only`:
// the terms differ in type, which a linear without bias alone can bring together.
Value fused_sum(Inputs inputs, size_t k, bool linear_only = false) {
  Value term = inputs[k], other = inputs[1 - k];
  if (linear_only && (source(term).op != &kLinear || source(term).inputs.size() != 2)) return Value();
  const Node& n = source(term);
  size_t count = n.inputs.size();
  if (n.op == &kMul && term.shape() == other.shape()) return mul_add(input_of(term, 0), input_of(term, 1), other);
  if (n.op == &kLinear && n.attrs.text("act") == "none" && term.shape() == other.shape()) {
    return linear_add(input_of(term, 0), input_of(term, 1), count == 3 ? input_of(term, 2) : Value(), other);
  }
  if (n.op == &kRmsNorm && term.shape() == other.shape() && !n.attrs.has("to")) {
    return rms_norm_add(input_of(term, 0), other, count > 1 ? input_of(term, 1) : Value(),
                        count > 2 ? input_of(term, 2) : Value(), n.attrs.real("eps"), n.attrs.real("offset"));
  }
  return Value();
}

}  // namespace

Graph split_gates(const Graph& graph) {
  return rewrite(graph, [](Graph&, const Node& node, Inputs in) {
    if (node.op != &kLinearAdd || !node.attrs.integer("gate")) return Value();
    return mul_add(in[3], linear(in[1], in[2], node.attrs.integer("bias") ? in.back() : Value()), in[0]);
  });
}

Graph match_weight_types(const Graph& graph) {
  return rewrite(graph, [](Graph& target, const Node& node, Inputs inputs) {
    bool product = node.op == &kLinear || node.op == &kLinearAdd || node.op == &kRmsNorm;
    bool quantized = node.op == &kQuantizedLinear || node.op == &kQuantizedLinearRows;
    if (!product && !quantized) return Value();
    std::vector<Value> matched(inputs.begin(), inputs.end());
    if (quantized) {
      size_t bias = QuantizedInputs(node.attrs).bias;
      if (!bias) return Value();
      matched[bias] = cast(matched[bias], node.spec.dtype);
      return target.append(*node.op, matched, node.attrs);
    }
    size_t x = node.op == &kLinearAdd ? 1 : 0;
    for (size_t i = x + 1; i < matched.size(); ++i) matched[i] = cast(matched[i], inputs[x].dtype());
    return target.append(*node.op, matched, node.attrs);
  });
}

Graph merge_linears(const Graph& graph) {
  std::vector<LinearGroup> groups = group_linears(graph);
  std::map<NodeId, LinearGroup*> group_of;
  for (LinearGroup& group : groups) {
    if (group.members.size() < 2) continue;
    for (NodeId member : group.members) group_of[member] = &group;
  }
  // Node references are stable, so a node is known by its address.
  std::map<const Node*, NodeId> ids;
  for (const auto& [member, group] : group_of) ids[&graph.node(member)] = member;
  return rewrite(graph, [&](Graph& target, const Node& node, Inputs inputs) {
    auto found = ids.find(&node);
    if (found == ids.end()) return Value();
    LinearGroup& group = *group_of[found->second];
    if (!group.joined.defined()) group.joined = join(graph, target, group, inputs[0]);
    int64_t at = 0;
    for (NodeId member : group.members) {
      int64_t rows = graph.node(member).spec.shape[-1];
      if (member == found->second) return slice(group.joined, node.spec.shape.rank() - 1, at, at + rows);
      at += rows;
    }
    return Value();
  });
}

Graph drop_rejoined_slices(const Graph& graph) {
  return rewrite(graph, [](Graph&, const Node& node, Inputs inputs) {
    if (node.op->name != "concat") return Value();
    int64_t axis = node.attrs.integer("axis"), at = 0;
    Value whole;
    for (const Value& part : inputs) {
      const Node& n = source(part);
      if (n.op->name != "slice" || n.attrs.integer("axis") != axis || n.attrs.integer("stride") != 1 ||
          n.attrs.integer("start") != at) {
        return Value();
      }
      Value from = input_of(part, 0);
      if (whole.defined() && whole.id() != from.id()) return Value();
      whole = from;
      at = n.attrs.integer("stop");
    }
    return whole.shape()[static_cast<int>(axis)] == at ? whole : Value();
  });
}

Graph join_before_slicing(const Graph& graph) {
  return rewrite(graph, [](Graph&, const Node& node, Inputs inputs) {
    if (node.op != &kConcat || inputs.size() < 2) return Value();
    int64_t axis = node.attrs.integer("axis");
    if (node.spec.shape.product(0, static_cast<int>(axis)) != 1) return Value();  // parts would lie in pieces
    const Attrs& first = source(inputs[0]).attrs;
    std::vector<Value> wholes;
    for (const Value& part : inputs) {
      const Node& n = source(part);
      if (n.op != &kSlice || !(n.attrs == first) || n.attrs.integer("stride") != 1) return Value();
      Value whole = input_of(part, 0);
      const OpDef* maker = source(whole).op;
      bool product = maker == &kLinear || maker == &kQuantizedLinear || maker == &kQuantizedLinearRows;
      if (n.attrs.integer("axis") == axis || !product) return Value();
      if (!wholes.empty() && whole.shape()[-1] != wholes[0].shape()[-1]) return Value();
      wholes.push_back(whole);
    }
    return slice(concat(wholes, static_cast<int>(axis)), static_cast<int>(first.integer("axis")),
                 first.integer("start"), first.integer("stop"));
  });
}

Graph fuse_norm_rope(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph&, const Node& node, Inputs inputs) {
    if (node.op != &kRope || users[static_cast<size_t>(node.inputs[0])] != 1) return Value();
    const Node& norm = source(inputs[0]);
    if (norm.op != &kRmsNorm || norm.inputs.size() != 2 || norm.attrs.has("to")) return Value();
    return rms_norm_rope(input_of(inputs[0], 0), input_of(inputs[0], 1), inputs[1], inputs[2], norm.attrs.real("eps"),
                         norm.attrs.real("offset"), node.attrs.integer("interleaved") != 0);
  });
}

Graph fuse_pointwise(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  auto alone = [&](const Node& node, size_t k) { return users[static_cast<size_t>(node.inputs[k])] == 1; };
  Graph gated = rewrite(graph, [&](Graph&, const Node& node, Inputs inputs) {
    if (node.op != &kMul || !(inputs[0].shape() == inputs[1].shape())) return Value();
    for (size_t k : {size_t{0}, size_t{1}}) {
      const OpDef* op = source(inputs[k]).op;
      if ((op == &kSilu || op == &kGeluTanh) && alone(node, k)) {
        return act_mul(input_of(inputs[k], 0), inputs[1 - k], std::string(op->name));
      }
    }
    return Value();
  });
  users = count_users(gated);
  return rewrite(gated, [&](Graph& target, const Node& node, Inputs inputs) {
    if (node.op == &kCast && alone(node, 0)) return norm_to(target, node.spec.dtype, inputs[0]);
    if (node.op != &kAdd) return Value();
    for (size_t k : {size_t{1}, size_t{0}}) {
      if (!alone(node, k)) continue;
      const Node& term = gated.node(node.inputs[k]);
      if (term.op == &kCast && node.spec.dtype == DType::f32 && alone(term, 0)) {
        if (Value wide = fused_sum(std::array{inputs[1 - k], input_of(inputs[k], 0)}, 1, true); wide.defined())
          return wide;
      }
      if (Value fused = fused_sum(inputs, k); fused.defined()) return fused;
    }
    return Value();
  });
}

}  // namespace kinora
