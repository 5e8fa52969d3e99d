#include "ops/fuse_film.h"

#include <array>

#include "graph/rewrite.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/shaping.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;

bool is(const Value& value, const OpDef& op) { return node_of(value).op == &op; }

bool is_slice_of_frames(const Value& value, int64_t start, int64_t stop) {
  if (!is(value, kSlice)) return false;
  const Attrs& a = node_of(value).attrs;
  return a.integer("axis") == 1 && a.integer("start") == start && a.integer("stop") == stop && a.integer("stride") == 1;
}

// x, when the film is x with every frame shown twice; else undefined.
Value before_repeating_frames(Value film) {
  if (!is(film, kReshape) || !is(input_of(film), kBroadcast) || !is(input_of(input_of(film)), kReshape)) return Value();
  Value x = input_of(input_of(input_of(film)));
  const Shape s = x.shape(), once = input_of(input_of(film)).shape(), twice = input_of(film).shape();
  bool fits = s.rank() == 5 && once == Shape{s[0], s[1], 1, s[2], s[3], s[4]} &&
              twice == Shape{s[0], s[1], 2, s[2], s[3], s[4]} && film.shape() == s.with(1, 2 * s[1]);
  return fits ? x : Value();
}

// x, when the film is x with every frame but the first shown twice; else undefined.
Value before_doubling_frames(Value film) {
  if (!is(film, kConcat) || node_of(film).inputs.size() != 2 || node_of(film).attrs.integer("axis") != 1)
    return Value();
  Value first = input_of(film, 0), rest = before_repeating_frames(input_of(film, 1));
  if (!rest.defined() || !is_slice_of_frames(first, 0, 1) || !is_slice_of_frames(rest, 1, rest.shape()[1] + 1))
    return Value();
  Value x = input_of(rest);
  return x.id() == input_of(first).id() && x.shape()[1] == rest.shape()[1] + 1 ? x : Value();
}

// x, when the film is x with pictures twice as high and wide; else undefined.
Value before_doubling_pictures(Value film) {
  if (!is(film, kReshape) || !is(input_of(film), kUpsample2) || !is(input_of(input_of(film)), kReshape)) return Value();
  Value x = input_of(input_of(input_of(film)));
  const Shape s = x.shape();
  if (s.rank() != 5 || !(film.shape() == Shape{s[0], s[1], 2 * s[2], 2 * s[3], s[4]})) return Value();
  return input_of(input_of(film)).shape() == Shape{s[0] * s[1], s[2], s[3], s[4]} ? x : Value();
}

bool is_3x3x3(const Node& conv, Inputs in, const Ints& padding) {
  if (conv.op != &kConv3d) return false;
  const Attrs& a = conv.attrs;
  const Shape& w = in[1].shape();
  return w[2] == 3 && w[3] == 3 && w[4] == 3 && a.ints("stride") == Ints{1, 1, 1} && a.ints("padding") == padding &&
         a.integer("groups") == 1 && a.text("weight_layout") == "oithw";
}

bool is_causal_3x3x3(const Node& conv, Inputs in) {
  if (!is_3x3x3(conv, in, {0, 0, 0}) || !is(in[0], kPadEdge)) return false;
  const Attrs& pad = node_of(in[0]).attrs;
  return pad.ints("before") == Ints{0, 2, 1, 1, 0} && pad.ints("after") == Ints{0, 0, 1, 1, 0};
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

// The phases' convolution of a film that is padded already, or gets zeros around it.
Value convolve_phases(Value x, std::span<const Value> phases, Inputs in, std::array<int64_t, 3> padding,
                      const Node& conv) {
  Value bias = in.size() == 3 ? concat(std::vector<Value>(phases.size(), in[2]), 0) : Value();
  Value weight = cast(concat(phases, 0), x.dtype());
  return conv3d(x, weight, bias, {.padding = padding, .act = conv.attrs.text("act")});
}

Value interleave_pictures(Value x, const Shape& shape) {
  const Shape s = x.shape();
  return reshape(interleave_phases(reshape(x, {s[0] * s[1], s[2], s[3], s[4]})), shape);
}

Value fold_causal(const Node& conv, Inputs in) {
  Value pictures = before_doubling_pictures(input_of(in[0]));
  if (!pictures.defined()) return Value();
  Value film = before_doubling_frames(pictures), weight = cast(in[1], DType::f32);
  std::vector<Value> phases;
  if (!film.defined()) {
    add_picture_phases(weight, phases);
    Value padded = pad_edge(pictures, {0, 2, 1, 1, 0}, {0, 0, 1, 1, 0});
    return interleave_pictures(convolve_phases(padded, phases, in, {0, 0, 0}, conv), conv.spec.shape);
  }
  // The first of a frame's two sees the frame before with two taps, the second with one.
  add_picture_phases(two_taps(weight, 2, false), phases);
  add_picture_phases(two_taps(weight, 2, true), phases);
  Value padded = pad_edge(film, {0, 1, 1, 1, 0}, {0, 0, 1, 1, 0});
  return interleave_phases3d(convolve_phases(padded, phases, in, {0, 0, 0}, conv));
}

Value fold_padded(const Node& conv, Inputs in) {
  Value once = before_repeating_frames(in[0]);
  Value x = before_doubling_pictures(once.defined() ? once : in[0]);
  if (!x.defined()) return Value();
  std::vector<Value> phases;
  add_picture_phases(cast(in[1], DType::f32), phases);
  if (once.defined()) x = repeat_interleave(x, 1, 2);
  return interleave_pictures(convolve_phases(x, phases, in, {1, 1, 1}, conv), conv.spec.shape);
}

}  // namespace

Graph fold_film_upsampling(const Graph& graph) {
  std::vector<int> users = count_users(graph);
  return rewrite(graph, [&](Graph&, const Node& node, Inputs in) {
    if (node.op != &kConv3d || users[static_cast<size_t>(node.inputs[0])] != 1) return Value();
    if (is_causal_3x3x3(node, in)) return fold_causal(node, in);
    return is_3x3x3(node, in, {1, 1, 1}) ? fold_padded(node, in) : Value();
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
