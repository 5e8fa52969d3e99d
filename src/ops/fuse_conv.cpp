#include "ops/fuse_conv.h"

#include <map>

#include "graph/rewrite.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/shaping.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;

bool is_depthwise3(const Graph& graph, const Node& node) {
  if (node.op != &kConv2d) return false;
  const Shape &x = graph.node(node.inputs[0]).spec.shape, &w = graph.node(node.inputs[1]).spec.shape;
  return w == Shape{x[3], 1, 3, 3} && node.attrs.integer("groups") == x[3] && node.attrs.integer("stride") == 1 &&
         node.attrs.integer("padding") == 1 && node.attrs.text("act") == "none" &&
         node.attrs.text("weight_layout") == "oihw";
}

bool is_joined(const Graph& graph, const Node& node) {
  return node.op == &kDepthwiseGlu && graph.node(node.inputs[1]).spec.shape[2] == 3 && node.attrs.text("act") == "none";
}

// What becomes of a node that is part of linear -> depthwise convolution -> glu, the last two perhaps one op already.
enum class Role { glu, glu_after_silu, joined_after_silu, linear };

std::map<const Node*, Role> find_chains(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  std::map<const Node*, Role> roles;
  auto sole = [&](NodeId id) { return users[static_cast<size_t>(id)] == 1; };
  for (size_t i = 0; i < users.size(); ++i) {
    const Node& glu = graph.nodes()[i];
    if (users[i] == 0) continue;
    bool joined = is_joined(graph, glu);
    if (!joined && !(glu.op == &kGlu && sole(glu.inputs[0]) && is_depthwise3(graph, graph.node(glu.inputs[0]))))
      continue;
    if (!joined) roles[&glu] = Role::glu;
    NodeId source = joined ? glu.inputs[0] : graph.node(glu.inputs[0]).inputs[0];
    while (graph.node(source).op == &kReshape && sole(source)) source = graph.node(source).inputs[0];
    const Node& linear = graph.node(source);
    if (linear.op != &kLinear || !sole(source) || linear.attrs.text("act") != "silu") continue;
    roles[&glu] = joined ? Role::joined_after_silu : Role::glu_after_silu;
    roles[&linear] = Role::linear;
  }
  return roles;
}

// The taps of a 3x3 filter along `axis` as two phases of two: phase 0 sees the pixel before and its own (the first tap;
// the other two), phase 1 its own and the next.
Value phase_taps(Value weight, int axis, int phase) {
  auto tap = [&](int64_t i) { return slice(weight, axis, i, i + 1); };
  return phase == 0 ? concat({tap(0), tap(1) + tap(2)}, axis) : concat({tap(0) + tap(1), tap(2)}, axis);
}

bool is_3x3_same(const Node& node, const Shape& weight) {
  return node.op == &kConv2d && weight[2] == 3 && weight[3] == 3 && node.attrs.integer("stride") == 1 &&
         node.attrs.integer("padding") == 1 && node.attrs.integer("groups") == 1 &&
         node.attrs.text("weight_layout") == "oihw";
}

const OpDef* op_of(const Value& value) { return node_of(value).op; }

// a + repeated, when the latter repeats elements along axes of extent one of some shape; else undefined.
Value repeat_by_broadcast(Value a, Value repeated) {
  const Shape s = repeated.shape();
  if (op_of(repeated) == &kUpsample2) {
    Value x = input_of(repeated);
    const Shape& from = x.shape();
    Shape wide{from[0], from[1], 2, from[2], 2, from[3]}, narrow{from[0], from[1], 1, from[2], 1, from[3]};
    return reshape(reshape(a, wide) + reshape(x, narrow), s);
  }
  if (op_of(repeated) != &kReshape || op_of(input_of(repeated)) != &kBroadcast) return Value();
  Value wide = input_of(repeated);
  return reshape(reshape(a, wide.shape()) + input_of(wide), s);
}

// What DC-AE's upsampling shortcut repeats: x of upsample_nearest2(x), or x [b, h, w, 2C] of which each pixel's
// channels are its two rows and its columns are alike; else undefined.
Value before_shortcut(Value repeated) {
  if (op_of(repeated) == &kUpsample2) return input_of(repeated);
  Value x = repeated;
  for (const OpDef* op : {&kReshape, &kBroadcast, &kReshape, &kReshape, &kPermute, &kReshape}) {
    if (op_of(x) != op) return Value();
    x = input_of(x);
  }
  const Shape s = x.shape();
  if (s.rank() != 4 || s[3] % 2 != 0) return Value();
  int64_t channels = s[3] / 2;
  Value columns = input_of(repeated), rows = input_of(input_of(columns)), turned = input_of(rows);
  bool fits = repeated.shape() == Shape{s[0], 2 * s[1], 2 * s[2], channels} &&
              columns.shape() == Shape{s[0], 2 * s[1], s[2], 2, channels} &&
              input_of(columns).shape() == Shape{s[0], 2 * s[1], s[2], 1, channels} &&
              rows.shape() == Shape{s[0], 2 * s[1], s[2], channels} &&
              node_of(turned).attrs.ints("order") == Ints{0, 1, 4, 2, 3} &&
              input_of(turned).shape() == Shape{s[0], s[1], s[2], channels, 2};
  return fits ? x : Value();
}

// Zeros behind the channels of x, weight [out, t, h, w, in] and bias, up to a multiple of eight.
void fill_channels(std::vector<Value>& inputs) {
  auto missing = [](int64_t channels) { return (8 - channels % 8) % 8; };
  int64_t in = missing(inputs[1].shape()[4]), out = missing(inputs[1].shape()[0]);
  inputs[0] = pad(inputs[0], 4, 0, in);
  inputs[1] = pad(pad(inputs[1], 4, 0, in), 0, 0, out);
  if (inputs.size() == 3) inputs[2] = pad(inputs[2], 0, 0, out);
}

}  // namespace

Graph fold_upsampling(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph&, const Node& node, Inputs in) {
    if (node.op != &kConv2d || !is_3x3_same(node, in[1].shape()) || op_of(in[0]) != &kUpsample2 ||
        users[static_cast<size_t>(node.inputs[0])] != 1) {
      return Value();
    }
    Value x = input_of(in[0]), weight = cast(in[1], DType::f32);
    std::vector<Value> phases, biases;
    for (int row : {0, 1}) {
      for (int column : {0, 1}) {
        phases.push_back(phase_taps(phase_taps(weight, 2, row), 3, column));
        if (in.size() == 3) biases.push_back(in[2]);
      }
    }
    Value joined = cast(concat(phases, 0), x.dtype()), bias = biases.empty() ? Value() : concat(biases, 0);
    return interleave_phases(conv2d(x, joined, bias, {.padding = 1, .act = node.attrs.text("act")}));
  });
}

Graph join_phases_and_shortcut(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph&, const Node& node, Inputs in) {
    if (node.op != &kAdd || !(in[0].shape() == in[1].shape())) return Value();
    for (size_t k : {size_t{0}, size_t{1}}) {
      if (op_of(in[k]) != &kInterleavePhases || node_of(in[k]).inputs.size() != 1) continue;
      if (users[static_cast<size_t>(node.inputs[k])] != 1) continue;
      if (Value x = before_shortcut(in[1 - k]); x.defined()) return interleave_phases(input_of(in[k]), x);
    }
    return Value();
  });
}

Graph add_without_repeating(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph&, const Node& node, Inputs in) {
    if (node.op != &kAdd || !(in[0].shape() == in[1].shape())) return Value();
    for (size_t k : {size_t{1}, size_t{0}}) {
      if (users[static_cast<size_t>(node.inputs[k])] != 1) continue;
      if (Value sum = repeat_by_broadcast(in[1 - k], in[k]); sum.defined()) return sum;
    }
    return Value();
  });
}

Graph channels_last_weights(const Graph& graph) {
  return rewrite(graph, [](Graph&, const Node& node, Inputs in) {
    bool film = node.op == &kConv3d;
    if ((node.op != &kConv2d && !film) || node.attrs.integer("groups") != 1) return Value();
    const Shape w = in[1].shape();
    if (node.attrs.text("weight_layout") != (film ? "oithw" : "oihw") || w.product(2, w.rank()) == 1) return Value();
    std::vector<Value> inputs(in.begin(), in.end());
    for (size_t i = 1; i < inputs.size(); ++i) inputs[i] = cast(inputs[i], in[0].dtype());
    inputs[1] = permute(inputs[1], film ? Ints{0, 2, 3, 4, 1} : Ints{0, 2, 3, 1});
    if (film && in[0].dtype() != DType::f32) fill_channels(inputs);
    Attrs attrs = node.attrs;
    attrs.set("weight_layout", std::string(film ? "othwi" : "ohwi"));
    return slice(apply(*node.op, inputs, attrs), w.rank() - 1, 0, w[0]);
  });
}

Graph fuse_depthwise_glu(const Graph& graph) {
  std::map<const Node*, Role> roles = find_chains(graph);
  Graph fused = rewrite(graph, [&](Graph& target, const Node& node, Inputs in) {
    auto role = roles.find(&node);
    if (role == roles.end()) return Value();
    if (role->second == Role::linear) return linear(in[0], in[1], in.size() == 3 ? in[2] : Value());
    if (role->second == Role::joined_after_silu) return apply(kDepthwiseGlu, in, {{"act", "silu"}});
    std::vector<Value> inputs;
    for (NodeId id : target.node(in[0].id()).inputs) inputs.emplace_back(&target, id);
    return apply(kDepthwiseGlu, inputs, {{"act", role->second == Role::glu_after_silu ? "silu" : "none"}});
  });
  return rewrite(fused, [](Graph&, const Node&, Inputs) { return Value(); });  // without the convolutions, now unread
}

}  // namespace kinora
