#include "ops/fuse.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>

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

// Whether it is a norm that no rewrite has made more of.
bool is_plain_norm(const Node& n) { return n.op == &kRmsNorm && !n.attrs.has("to") && !n.attrs.has("act"); }

// The norm `value` with one attribute more.
Value norm_with(Graph& target, Value value, const std::string& name, Attr attr) {
  const Node& n = node_of(value);
  std::vector<Value> inputs;
  for (NodeId id : n.inputs) inputs.emplace_back(&target, id);
  Attrs attrs = n.attrs;
  attrs.set(name, std::move(attr));
  return target.append(kRmsNorm, inputs, attrs);
}

// The fused form of a sum whose term `inputs[k]` is read by nobody else; undefined when there is none. `linear_only`:
// the terms differ in type, which a linear without bias alone can bring together.
Value fused_sum(Inputs inputs, size_t k, bool linear_only = false) {
  Value term = inputs[k], other = inputs[1 - k];
  if (linear_only && (node_of(term).op != &kLinear || node_of(term).inputs.size() != 2)) return Value();
  const Node& n = node_of(term);
  if (n.op == &kMul && term.shape() == other.shape()) return mul_add(input_of(term, 0), input_of(term, 1), other);
  if (n.op == &kLinear && n.attrs.text("act") == "none" && term.shape() == other.shape()) {
    return linear_add(input_of(term, 0), input_of(term, 1), input_of(term, 2), other);
  }
  if (is_plain_norm(n) && term.shape() == other.shape()) {
    return rms_norm_add(input_of(term, 0), other, input_of(term, 1), input_of(term, 2), n.attrs.real("eps"),
                        n.attrs.real("offset"));
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

Graph fuse_norm_rope(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph&, const Node& node, Inputs inputs) {
    if (node.op != &kRope || users[static_cast<size_t>(node.inputs[0])] != 1) return Value();
    const Node& norm = node_of(inputs[0]);
    if (!is_plain_norm(norm) || norm.inputs.size() != 2) return Value();
    return rms_norm_rope(input_of(inputs[0], 0), input_of(inputs[0], 1), inputs[1], inputs[2], norm.attrs.real("eps"),
                         norm.attrs.real("offset"), node.attrs.integer("interleaved") != 0);
  });
}

namespace {

// A rope of some heads that are columns of x [batch, tokens, ..], for attention alone.
struct Turn {
  const Node* node = nullptr;
  NodeId x = -1;
  int64_t begin = 0, end = 0;  // columns

  bool joins(const Turn& next) const {
    return x == next.x && end == next.begin && node->inputs[1] == next.node->inputs[1] &&
           node->inputs[2] == next.node->inputs[2] && node->attrs == next.node->attrs &&
           node->spec.shape[3] == next.node->spec.shape[3];
  }
};

std::optional<Turn> turn_of(const Graph& graph, const Node& node) {
  if (node.op != &kRope) return {};
  const Node& heads = graph.node(node.inputs[0]);
  if (heads.op != &kReshape || graph.node(heads.inputs[0]).op != &kSlice) return {};
  const Node& columns = graph.node(heads.inputs[0]);
  const Shape &s = columns.spec.shape, &h = heads.spec.shape;
  if (columns.attrs.integer("axis") != 2 || columns.attrs.integer("stride") != 1 || s.rank() != 3 || h[0] != s[0] ||
      h[1] != s[1]) {
    return {};
  }
  return Turn{&node, columns.inputs[0], columns.attrs.integer("start"), columns.attrs.integer("stop")};
}

// Runs of two and more that join, each by its columns.
std::vector<std::vector<Turn>> joining_turns(const Graph& graph) {
  std::vector<bool> live = live_nodes(graph);
  std::vector<int> elsewhere = count_users(graph);  // than in attention
  for (size_t i = 0; i < live.size(); ++i) {
    const Node& node = graph.nodes()[i];
    for (NodeId input : node.inputs) elsewhere[static_cast<size_t>(input)] -= live[i] && node.op == &kAttention;
  }
  std::vector<Turn> turns;
  for (size_t i = 0; i < live.size(); ++i) {
    std::optional<Turn> turn = live[i] && !elsewhere[i] ? turn_of(graph, graph.nodes()[i]) : std::nullopt;
    if (turn) turns.push_back(*turn);
  }
  std::ranges::stable_sort(turns, {}, [](const Turn& t) { return std::pair(t.x, t.begin); });
  std::vector<std::vector<Turn>> runs;
  for (const Turn& turn : turns) {
    if (runs.empty() || !runs.back().back().joins(turn)) runs.emplace_back();
    runs.back().push_back(turn);
  }
  std::erase_if(runs, [](const std::vector<Turn>& run) { return run.size() < 2; });
  return runs;
}

}  // namespace

Graph merge_ropes(const Graph& graph) {
  std::vector<std::vector<Turn>> runs = joining_turns(graph);
  std::map<const Node*, std::pair<size_t, int64_t>> place;  // its run and its first head there
  for (size_t i = 0; i < runs.size(); ++i) {
    int64_t dim = runs[i][0].node->spec.shape[3];
    for (const Turn& turn : runs[i]) place[turn.node] = {i, (turn.begin - runs[i][0].begin) / dim};
  }
  std::vector<Value> joined(runs.size());
  return rewrite(graph, [&](Graph&, const Node& node, Inputs inputs) {
    auto found = place.find(&node);
    if (found == place.end()) return Value();
    auto [run, head] = found->second;
    const Shape& s = node.spec.shape;
    if (!joined[run].defined()) {
      int64_t begin = runs[run].front().begin, end = runs[run].back().end;
      Value x = slice(input_of(input_of(inputs[0])), 2, begin, end);
      joined[run] = rope(reshape(x, {s[0], s[1], (end - begin) / s[3], s[3]}), inputs[1], inputs[2],
                         node.attrs.integer("interleaved") != 0);
    }
    return slice(joined[run], 2, head, head + s[2]);
  });
}

Graph fuse_pointwise(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  auto alone = [&](const Node& node, size_t k) { return users[static_cast<size_t>(node.inputs[k])] == 1; };
  Graph gated = rewrite(graph, [&](Graph&, const Node& node, Inputs inputs) {
    if (node.op != &kMul || !(inputs[0].shape() == inputs[1].shape())) return Value();
    for (size_t k : {size_t{0}, size_t{1}}) {
      const OpDef* op = node_of(inputs[k]).op;
      if ((op == &kSilu || op == &kGeluTanh) && alone(node, k)) {
        return act_mul(input_of(inputs[k], 0), inputs[1 - k], std::string(op->name));
      }
    }
    return Value();
  });
  users = count_users(gated);
  return rewrite(gated, [&](Graph& target, const Node& node, Inputs inputs) {
    if ((node.op == &kCast || node.op == &kRelu) && alone(node, 0) && is_plain_norm(node_of(inputs[0]))) {
      if (node.op == &kRelu) return norm_with(target, inputs[0], "act", std::string("relu"));
      bool wide = inputs[0].dtype() == DType::f32;
      return wide ? norm_with(target, inputs[0], "to", static_cast<int64_t>(node.spec.dtype)) : Value();
    }
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
