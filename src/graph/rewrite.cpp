#include "graph/rewrite.h"

namespace kinora {

const Node& node_of(const Value& value) { return value.graph().node(value.id()); }

Value input_of(const Value& value, size_t k) {
  const Node& node = node_of(value);
  return k < node.inputs.size() ? Value(&value.graph(), node.inputs[k]) : Value();
}

std::vector<bool> live_nodes(const Graph& graph) {
  std::vector<bool> live(graph.nodes().size(), false);
  for (const auto& [name, id] : graph.outputs()) live[static_cast<size_t>(id)] = true;
  for (size_t i = graph.nodes().size(); i-- > 0;) {
    if (!live[i]) continue;
    for (NodeId input : graph.nodes()[i].inputs) live[static_cast<size_t>(input)] = true;
  }
  return live;
}

std::vector<int> count_users(const Graph& graph) {
  std::vector<bool> live = live_nodes(graph);
  std::vector<int> users(graph.nodes().size(), 0);
  for (size_t i = 0; i < users.size(); ++i) {
    if (!live[i]) continue;
    for (NodeId input : graph.nodes()[i].inputs) ++users[static_cast<size_t>(input)];
  }
  for (const auto& [name, id] : graph.outputs()) ++users[static_cast<size_t>(id)];
  return users;
}

Value copy_node(Graph& target, const Node& node, std::span<const Value> inputs) {
  if (node.op == &kInputOp) return target.input(node.name, node.spec.shape, node.spec.dtype);
  if (node.op == &kParameterOp) return target.parameter(node.name, node.value);
  if (node.op == &kConstantOp) return target.constant(node.value);
  return target.append(*node.op, inputs, node.attrs);
}

Graph rewrite(const Graph& graph, const RewriteNode& node_rule) {
  Graph target;
  std::vector<bool> live = live_nodes(graph);
  std::vector<NodeId> ids(graph.nodes().size(), -1);
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& node = graph.nodes()[i];
    if (!live[i] && node.op != &kInputOp) continue;
    std::vector<Value> inputs;
    for (NodeId input : node.inputs) inputs.emplace_back(&target, ids[static_cast<size_t>(input)]);
    target.scope = is_leaf(node) ? "" : node.name;
    Value value = node_rule(target, node, inputs);
    if (!value.defined()) value = copy_node(target, node, inputs);
    check(value.shape() == node.spec.shape && value.dtype() == node.spec.dtype,
          "a rewrite changed a node's shape or type");
    ids[i] = value.id();
  }
  target.scope.clear();
  for (const auto& [name, id] : graph.outputs()) target.output(name, Value(&target, ids[static_cast<size_t>(id)]));
  return target;
}

Graph lower(const Graph& graph, const std::function<bool(const Graph&, const Node&)>& replace) {
  const Graph* current = &graph;
  std::unique_ptr<Graph> owned;
  for (int round = 0; round < 16; ++round) {
    bool changed = false;
    auto next = std::make_unique<Graph>(rewrite(*current, [&](Graph&, const Node& node, std::span<const Value> inputs) {
      if (is_leaf(node) || !replace(*current, node)) return Value();
      if (!node.op->decompose) {
        fail(ErrorKind::internal, "op '" + std::string(node.op->name) + "' is not available here for " +
                                      std::string(dtype_name(node.spec.dtype)) + " " + node.spec.shape.str());
      }
      changed = true;
      return node.op->decompose(inputs, node.attrs);
    }));
    if (!changed) return std::move(*next);
    owned = std::move(next);
    current = owned.get();
  }
  fail(ErrorKind::internal, "a decomposition does not end");
}

}  // namespace kinora
