#include "ops/grad.h"

#include "graph/rewrite.h"
#include "ops/elementwise.h"
#include "ops/shaping.h"

namespace kinora {

Graph expand_for_grad(const Graph& graph) {
  return lower(graph, [](const Graph&, const Node& node) { return !node.op->grad; });
}

std::vector<Value> gradients(Value loss, std::span<const Value> wrt, Value seed) {
  Graph& graph = loss.graph();
  size_t count = static_cast<size_t>(loss.id()) + 1;

  // Only nodes that depend on one of `wrt` need a gradient.
  std::vector<bool> needed(count, false);
  for (const Value& value : wrt) {
    if (static_cast<size_t>(value.id()) < count) needed[static_cast<size_t>(value.id())] = true;
  }
  for (size_t i = 0; i < count; ++i) {
    for (NodeId input : graph.nodes()[i].inputs) needed[i] = needed[i] || needed[static_cast<size_t>(input)];
  }

  std::vector<Value> grads(count);
  grads.back() = seed.defined() ? seed : broadcast_to(graph.scalar(1, loss.dtype()), loss.shape());
  for (size_t i = count; i-- > 0;) {
    const Node& node = graph.nodes()[i];
    if (!grads[i].defined() || !needed[i] || is_leaf(node)) continue;
    if (!node.op->grad) fail(ErrorKind::internal, "op '" + std::string(node.op->name) + "' has no derivative");
    std::vector<Value> inputs;
    for (NodeId input : node.inputs) inputs.emplace_back(&graph, input);
    ScopeGuard scope(graph, node.name.empty() ? "grad" : node.name + " (grad)");
    std::vector<Value> input_grads = node.op->grad(inputs, node.attrs, Value(&graph, static_cast<NodeId>(i)), grads[i]);
    check(input_grads.size() == inputs.size(), "a derivative must give one gradient for each input");
    for (size_t k = 0; k < inputs.size(); ++k) {
      size_t id = static_cast<size_t>(node.inputs[k]);
      if (!needed[id] || !input_grads[k].defined()) continue;
      check(input_grads[k].shape() == inputs[k].shape(), "a gradient has the wrong shape");
      grads[id] = grads[id].defined() ? grads[id] + input_grads[k] : input_grads[k];
    }
  }

  std::vector<Value> result;
  for (const Value& value : wrt) {
    result.push_back(static_cast<size_t>(value.id()) < count ? grads[static_cast<size_t>(value.id())] : Value());
  }
  return result;
}

}  // namespace kinora
