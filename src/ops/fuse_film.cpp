#include "ops/fuse_film.h"

#include "graph/rewrite.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/shaping.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;

const Node& node_of(const Value& value) { return value.graph().node(value.id()); }
Value input_of(const Value& value, size_t k = 0) { return Value(&value.graph(), node_of(value).inputs[k]); }
bool is(const Value& value, const OpDef& op) { return node_of(value).op == &op; }

bool is_slice_of_frames(const Value& value, int64_t start, int64_t stop) {
  if (!is(value, kSlice)) return false;
  const Attrs& a = node_of(value).attrs;
  return a.integer("axis") == 1 && a.integer("start") == start && a.integer("stop") == stop && a.integer("stride") == 1;
}

// x, when the film is x with every frame but the first shown twice; else undefined.
Value before_doubling_frames(Value film) {
  if (!is(film, kConcat) || node_of(film).inputs.size() != 2 || node_of(film).attrs.integer("axis") != 1)
    return Value();
  Value first = input_of(film, 0), rest = input_of(film, 1);
  if (!is(rest, kReshape) || !is(input_of(rest), kBroadcast) || !is(input_of(input_of(rest)), kReshape)) return Value();
  Value once = input_of(input_of(input_of(rest)));
  const Shape wide = input_of(rest).shape(), s = once.shape();
  if (s.rank() != 5 || !(wide == Shape{s[0], s[1], 2, s[2], s[3], s[4]}) ||
      !(input_of(input_of(rest)).shape() == Shape{s[0], s[1], 1, s[2], s[3], s[4]}))
    return Value();
  if (!is_slice_of_frames(first, 0, 1) || !is_slice_of_frames(once, 1, s[1] + 1)) return Value();
  Value x = input_of(once);
  return x.id() == input_of(first).id() && x.shape()[1] == s[1] + 1 ? x : Value();
}

// x, when the film is x with pictures twice as high and wide; else undefined.
Value before_doubling_pictures(Value film) {
  if (!is(film, kReshape) || !is(input_of(film), kUpsample2) || !is(input_of(input_of(film)), kReshape)) return Value();
  Value x = input_of(input_of(input_of(film)));
  const Shape s = x.shape();
  if (s.rank() != 5 || !(film.shape() == Shape{s[0], s[1], 2 * s[2], 2 * s[3], s[4]})) return Value();
  return input_of(input_of(film)).shape() == Shape{s[0] * s[1], s[2], s[3], s[4]} ? x : Value();
}

bool is_causal_3x3x3(const Node& conv, Inputs in) {
  if (conv.op != &kConv3d || !is(in[0], kPadEdge)) return false;
  const Attrs &a = conv.attrs, &pad = node_of(in[0]).attrs;
  const Shape& w = in[1].shape();
  return w[2] == 3 && w[3] == 3 && w[4] == 3 && a.ints("stride") == Ints{1, 1, 1} &&
         a.ints("padding") == Ints{0, 0, 0} && a.integer("groups") == 1 && a.text("weight_layout") == "oithw" &&
         pad.ints("before") == Ints{0, 2, 1, 1, 0} && pad.ints("after") == Ints{0, 0, 1, 1, 0};
}

// Three taps along `axis` over a doubled axis, as the two that are left over the axis before: `first` and the other two
// joined, or the first two joined and the last.
Value two_taps(Value weight, int axis, bool first_alone) {
  auto tap = [&](int64_t i) { return slice(weight, axis, i, i + 1); };
  return first_alone ? concat({tap(0), tap(1) + tap(2)}, axis) : concat({tap(0) + tap(1), tap(2)}, axis);
}

// One filter for each phase of the pictures, in the order of interleave_phases.
void add_picture_phases(Value weight, std::vector<Value>& phases) {
  for (bool upper : {true, false}) {
    for (bool left : {true, false}) phases.push_back(two_taps(two_taps(weight, 3, upper), 4, left));
  }
}

}  // namespace

Graph fold_film_upsampling(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph&, const Node& node, Inputs in) {
    if (!is_causal_3x3x3(node, in) || users[static_cast<size_t>(node.inputs[0])] != 1) return Value();
    Value doubled = before_doubling_pictures(input_of(in[0]));
    if (!doubled.defined()) return Value();
    Value film = before_doubling_frames(doubled), weight = cast(in[1], DType::f32);
    bool frames = film.defined();
    Value x = frames ? film : doubled;
    std::vector<Value> phases;
    if (frames) {  // the frame before the doubled one, which shares two taps with its own, then the doubled one
      add_picture_phases(two_taps(weight, 2, false), phases);
      add_picture_phases(two_taps(weight, 2, true), phases);
    } else {
      add_picture_phases(weight, phases);
    }
    Value bias = in.size() == 3 ? concat(std::vector<Value>(phases.size(), in[2]), 0) : Value();
    Value padded = pad_edge(x, {0, frames ? 1 : 2, 1, 1, 0}, {0, 0, 1, 1, 0});
    Value y = conv3d(padded, cast(concat(phases, 0), x.dtype()), bias, {.act = node.attrs.text("act")});
    if (frames) return interleave_phases3d(y);
    const Shape s = y.shape();
    return reshape(interleave_phases(reshape(y, {s[0] * s[1], s[2], s[3], s[4]})), node.spec.shape);
  });
}

Graph fuse_norm_padding(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph& target, const Node& node, Inputs in) {
    if (node.op != &kPadEdge || !is(in[0], kGroupNorm) || users[static_cast<size_t>(node.inputs[0])] != 1)
      return Value();
    const Ints &before = node.attrs.ints("before"), &after = node.attrs.ints("after");
    if (before[0] + after[0] + before.back() + after.back() != 0) return Value();
    const Node& norm = node_of(in[0]);
    Attrs attrs = norm.attrs;
    attrs.set("before", before);
    attrs.set("after", after);
    std::vector<Value> inputs;
    for (NodeId id : norm.inputs) inputs.emplace_back(&target, id);
    return apply(kGroupNormPad, inputs, attrs);
  });
}

}  // namespace kinora
