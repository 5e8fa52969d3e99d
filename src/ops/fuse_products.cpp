#include "ops/fuse_products.h"

#include <map>
#include <optional>

#include "graph/rewrite.h"
#include "ops/matmul.h"
#include "ops/quantize.h"
#include "ops/shaping.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;

constexpr int64_t kMostColumns = 32768;  // keeps the joined result, which lives until its last reader, in bounds

bool is_parameter(const Graph& graph, NodeId id) { return graph.node(id).op == &kParameterOp; }

// Products that one wider product gives, each as columns of its result. A node is known by its address, which stays.
struct Group {
  std::vector<const Node*> members;
  int64_t columns = 0;
  Value joined;
};

// Groups of live nodes with the same key, in order; a node without one stays alone.
template <class Key>
std::vector<Group> group_products(const Graph& graph, std::optional<Key> (*key_of)(const Graph&, const Node&)) {
  std::vector<Group> groups;
  std::map<Key, size_t> open;
  std::vector<bool> live = live_nodes(graph);
  for (size_t i = 0; i < live.size(); ++i) {
    const Node& node = graph.nodes()[i];
    std::optional<Key> key = live[i] ? key_of(graph, node) : std::nullopt;
    if (!key) continue;
    int64_t columns = node.spec.shape[-1];
    auto [found, fresh] = open.try_emplace(*key, groups.size());
    if (fresh || groups[found->second].columns + columns > kMostColumns) {
      found->second = groups.size();
      groups.emplace_back();
    }
    groups[found->second].members.push_back(&node);
    groups[found->second].columns += columns;
  }
  return groups;
}

// The members' parameters number `input`, one behind the other.
Value join_parameters(const Graph& graph, Graph& target, const std::vector<const Node*>& members, size_t input) {
  std::vector<Value> parts;
  for (const Node* member : members) {
    const Node& leaf = graph.node(member->inputs[input]);
    parts.push_back(target.parameter(leaf.name, leaf.value));
  }
  return concat(parts, 0);
}

// One product in place of each group of several, and slices of its result; all inputs but x are parameters.
Graph join_groups(const Graph& graph, std::vector<Group> groups) {
  std::map<const Node*, std::pair<Group*, int64_t>> place;  // its group and its first column there
  for (Group& group : groups) {
    int64_t at = 0;
    for (const Node* member : group.members) {
      if (group.members.size() > 1) place[member] = {&group, at};
      at += member->spec.shape[-1];
    }
  }
  return rewrite(graph, [&](Graph& target, const Node& node, Inputs inputs) {
    auto found = place.find(&node);
    if (found == place.end()) return Value();
    auto [group, at] = found->second;
    if (!group->joined.defined()) {
      std::vector<Value> joined{inputs[0]};
      for (size_t i = 1; i < inputs.size(); ++i) joined.push_back(join_parameters(graph, target, group->members, i));
      group->joined = target.append(*node.op, joined, node.attrs);
    }
    return slice(group->joined, node.spec.shape.rank() - 1, at, at + node.spec.shape[-1]);
  });
}

struct LinearKey {
  NodeId x;
  std::string act;
  DType weight, bias;
  bool biased;
  auto operator<=>(const LinearKey&) const = default;
};

std::optional<LinearKey> linear_key(const Graph& graph, const Node& node) {
  if (node.op != &kLinear || !is_parameter(graph, node.inputs[1])) return {};
  bool biased = node.inputs.size() == 3;
  if (biased && !is_parameter(graph, node.inputs[2])) return {};
  return LinearKey{node.inputs[0], node.attrs.text("act"), graph.node(node.inputs[1]).spec.dtype,
                   biased ? graph.node(node.inputs[2]).spec.dtype : DType::f32, biased};
}

struct QuantizedKey {
  const OpDef* op;
  NodeId x;
  QuantFormat format;
  std::string act;
  bool biased;
  DType bias;
  Ints leading;
  DType dtype;
  auto operator<=>(const QuantizedKey&) const = default;
};

std::optional<QuantizedKey> quantized_key(const Graph& graph, const Node& node) {
  if (node.op != &kQuantizedLinear && node.op != &kQuantizedLinearRows) return {};
  QuantizedInputs at(node.attrs);
  if (at.scale_2 || at.gate || at.residual) return {};
  for (size_t i = 1; i < at.count; ++i) {
    if (!is_parameter(graph, node.inputs[i])) return {};
  }
  return QuantizedKey{node.op,
                      node.inputs[0],
                      at.format,
                      node.attrs.text("act"),
                      at.bias != 0,
                      at.bias ? graph.node(node.inputs[at.bias]).spec.dtype : DType::f32,
                      node.op == &kQuantizedLinearRows ? node.attrs.ints("rows") : Ints{},
                      node.spec.dtype};
}

}  // namespace

Graph merge_linears(const Graph& graph) { return join_groups(graph, group_products(graph, linear_key)); }

Graph merge_quantized_linears(const Graph& graph) { return join_groups(graph, group_products(graph, quantized_key)); }

Graph drop_rejoined_slices(const Graph& graph) {
  return rewrite(graph, [](Graph&, const Node& node, Inputs inputs) {
    if (node.op != &kConcat) return Value();
    int64_t axis = node.attrs.integer("axis"), at = 0;
    Value whole;
    for (const Value& part : inputs) {
      const Node& n = node_of(part);
      if (n.op != &kSlice || n.attrs.integer("axis") != axis || n.attrs.integer("stride") != 1 ||
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
    const Attrs& first = node_of(inputs[0]).attrs;
    std::vector<Value> wholes;
    for (const Value& part : inputs) {
      const Node& n = node_of(part);
      if (n.op != &kSlice || !(n.attrs == first) || n.attrs.integer("stride") != 1) return Value();
      Value whole = input_of(part, 0);
      const OpDef* maker = node_of(whole).op;
      bool product = maker == &kLinear || maker == &kQuantizedLinear || maker == &kQuantizedLinearRows;
      if (n.attrs.integer("axis") == axis || !product) return Value();
      if (!wholes.empty() && whole.shape()[-1] != wholes[0].shape()[-1]) return Value();
      wholes.push_back(whole);
    }
    return slice(concat(wholes, static_cast<int>(axis)), static_cast<int>(first.integer("axis")),
                 first.integer("start"), first.integer("stop"));
  });
}

}  // namespace kinora
