#include "ops/observe.h"

#include <map>
#include <set>

#include "graph/rewrite.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shaping.h"

namespace kinora {
namespace {

// The weight of a parameter that may be some rows of it: "qkv.weight[0:64]" -> "qkv.weight".
std::string without_rows(const std::string& name) {
  return name.ends_with(']') ? name.substr(0, name.rfind('[')) : name;
}

}  // namespace

ObservedGraph observe_products(const Graph& graph, const std::function<bool(const std::string& weight)>& wanted,
                               int64_t most_full) {
  ObservedGraph result;
  std::vector<bool> live = live_nodes(graph);
  std::vector<Value> values(graph.nodes().size());
  std::map<NodeId, size_t> observed;  // the input's place in the result, by its node
  std::set<std::string> seen;
  for (size_t i = 0; i < graph.nodes().size(); ++i) {
    const Node& node = graph.nodes()[i];
    if (!live[i] && node.op != &kInputOp) continue;
    std::vector<Value> inputs;
    for (NodeId input : node.inputs) inputs.push_back(values[static_cast<size_t>(input)]);
    result.graph.scope = is_leaf(node) ? "" : node.name;
    values[i] = copy_node(result.graph, node, inputs);
    bool sum = node.op == &kLinearAdd;
    if (node.op != &kLinear && !sum) continue;
    const Node& parameter = graph.node(node.inputs[sum ? 2 : 1]);
    std::string weight = without_rows(parameter.name);
    if (parameter.op != &kParameterOp || !wanted(weight) || !seen.insert(weight).second) continue;
    Value x = inputs[sum ? 1 : 0];
    auto [found, fresh] = observed.emplace(x.id(), result.inputs.size());
    if (fresh) {
      int64_t length = x.shape()[-1], rows = x.shape().numel() / length;
      result.inputs.push_back(
          {"moments." + std::to_string(result.inputs.size()), rows, length, length <= most_full, {}});
      x = cast(reshape(x, {rows, length}), DType::f32);
      Value moments = length <= most_full ? matmul(x, x, true, false) : reshape(kinora::sum(x * x, {0}), {length});
      result.graph.output(result.inputs.back().output, moments);
    }
    result.inputs[found->second].weights.push_back(weight);
  }
  return result;
}

}  // namespace kinora
