#include "ops/fuse.h"

#include <map>

#include "graph/rewrite.h"
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

// The fused form of a sum whose term `inputs[k]` is read by nobody else; undefined when there is none.
Value fused_sum(Inputs inputs, size_t k) {
  Value term = inputs[k], other = inputs[1 - k];
  const Node& n = source(term);
  size_t count = n.inputs.size();
  if (n.op == &kMul && term.shape() == other.shape()) return mul_add(input_of(term, 0), input_of(term, 1), other);
  if (n.op == &kLinear && n.attrs.text("act") == "none" && term.shape() == other.shape()) {
    return linear_add(input_of(term, 0), input_of(term, 1), count == 3 ? input_of(term, 2) : Value(), other);
  }
  if (n.op == &kRmsNorm && term.shape() == other.shape()) {
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
    for (size_t i = 1; i < matched.size(); ++i) matched[i] = cast(matched[i], inputs[0].dtype());
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
  return rewrite(gated, [&](Graph&, const Node& node, Inputs inputs) {
    if (node.op != &kAdd) return Value();
    for (size_t k : {size_t{1}, size_t{0}}) {
      if (!alone(node, k)) continue;
      if (Value fused = fused_sum(inputs, k); fused.defined()) return fused;
    }
    return Value();
  });
}

}  // namespace kinora
