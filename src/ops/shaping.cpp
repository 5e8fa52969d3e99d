#include "ops/shaping.h"

#include "ops/reduce.h"
#include "ops/table.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;
using Specs = std::span<const TensorSpec>;

int64_t checked_axis(const Attrs& attrs, const Shape& shape) {
  int64_t axis = attrs.integer("axis");
  if (axis < 0 || axis >= shape.rank()) fail(ErrorKind::internal, "axis " + std::to_string(axis) + " is out of range");
  return axis;
}

TensorSpec infer_reshape(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  Shape shape{std::span<const int64_t>(attrs.ints("shape"))};
  if (shape.numel() != in[0].shape.numel()) fail(ErrorKind::internal, "cannot become " + shape.str());
  return {shape, in[0].dtype};
}

TensorSpec infer_part(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  TensorSpec spec{Shape(std::span<const int64_t>(attrs.ints("shape"))), static_cast<DType>(attrs.integer("dtype"))};
  int64_t offset = attrs.integer("offset"), end = offset + static_cast<int64_t>(spec.bytes());
  if (offset < 0 || offset % 16 != 0 || end > static_cast<int64_t>(in[0].bytes())) {
    fail(ErrorKind::internal, "bytes " + std::to_string(offset) + " to " + std::to_string(end) + " of " +
                                  std::to_string(in[0].bytes()) + " are no part");
  }
  return spec;
}

TensorSpec infer_permute(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  const Ints& order = attrs.ints("order");
  if (static_cast<int>(order.size()) != in[0].shape.rank()) fail(ErrorKind::internal, "one entry per axis is needed");
  Ints dims;
  uint32_t seen = 0;
  for (int64_t axis : order) {
    if (axis < 0 || axis >= in[0].shape.rank()) fail(ErrorKind::internal, "axis is out of range");
    seen |= 1u << axis;
    dims.push_back(in[0].shape[static_cast<int>(axis)]);
  }
  if (seen != (1u << order.size()) - 1) fail(ErrorKind::internal, "an axis is named twice");
  return {Shape(std::span<const int64_t>(dims)), in[0].dtype};
}

TensorSpec infer_slice(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  int axis = static_cast<int>(checked_axis(attrs, in[0].shape));
  int64_t start = attrs.integer("start"), stop = attrs.integer("stop"), stride = attrs.integer("stride");
  if (start < 0 || stop < start || stop > in[0].shape[axis] || stride < 1) {
    fail(ErrorKind::internal, "range " + std::to_string(start) + ":" + std::to_string(stop) + " is outside the axis");
  }
  return {in[0].shape.with(axis, (stop - start + stride - 1) / stride), in[0].dtype};
}

TensorSpec infer_concat(Specs in, const Attrs& attrs) {
  if (in.empty()) fail(ErrorKind::internal, "nothing to join");
  int axis = static_cast<int>(checked_axis(attrs, in[0].shape));
  int64_t extent = 0;
  for (const TensorSpec& spec : in) {
    if (spec.dtype != in[0].dtype || spec.shape.rank() != in[0].shape.rank() ||
        !(spec.shape.with(axis, 1) == in[0].shape.with(axis, 1))) {
      fail(ErrorKind::internal, "parts differ in shape or type");
    }
    extent += spec.shape[axis];
  }
  return {in[0].shape.with(axis, extent), in[0].dtype};
}

TensorSpec infer_broadcast(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  Shape shape{std::span<const int64_t>(attrs.ints("shape"))};
  if (!(broadcast(in[0].shape, shape) == shape)) fail(ErrorKind::internal, "cannot broadcast to " + shape.str());
  return {shape, in[0].dtype};
}

TensorSpec infer_pad(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  int axis = static_cast<int>(checked_axis(attrs, in[0].shape));
  int64_t before = attrs.integer("before"), after = attrs.integer("after"), interior = attrs.integer("interior");
  if (before < 0 || after < 0 || interior < 0) fail(ErrorKind::internal, "padding cannot be negative");
  int64_t extent = in[0].shape[axis];
  return {in[0].shape.with(axis, before + after + extent + std::max<int64_t>(extent - 1, 0) * interior), in[0].dtype};
}

TensorSpec infer_pad_edge(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  const Ints &before = attrs.ints("before"), &after = attrs.ints("after");
  Shape shape = in[0].shape;
  auto rank = static_cast<size_t>(shape.rank());
  if (before.size() != rank || after.size() != rank) fail(ErrorKind::internal, "a padding for each axis is needed");
  for (int i = 0; i < shape.rank(); ++i) {
    int64_t b = before[static_cast<size_t>(i)], a = after[static_cast<size_t>(i)];
    if (b < 0 || a < 0) fail(ErrorKind::internal, "padding cannot be negative");
    if (b + a > 0 && shape[i] < 1) fail(ErrorKind::internal, "an empty axis has no edge to repeat");
    shape = shape.with(i, b + shape[i] + a);
  }
  return {shape, in[0].dtype};
}

TensorSpec infer_upsample2(Specs in, const Attrs&) {
  expect_inputs(in, 1);
  const Shape& s = in[0].shape;
  if (s.rank() != 4) fail(ErrorKind::internal, "[batch, height, width, channels] is needed");
  return {s.with(1, 2 * s[1]).with(2, 2 * s[2]), in[0].dtype};
}

std::vector<Value> no_gradient(Inputs in, const Attrs&, Value, Value) { return std::vector<Value>(in.size()); }
std::vector<Value> grad_reshape(Inputs in, const Attrs&, Value, Value g) { return {reshape(g, in[0].shape())}; }

std::vector<Value> grad_permute(Inputs, const Attrs& attrs, Value, Value g) {
  const Ints& order = attrs.ints("order");
  Ints inverse(order.size());
  for (size_t i = 0; i < order.size(); ++i) inverse[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  return {permute(g, inverse)};
}

std::vector<Value> grad_slice(Inputs in, const Attrs& attrs, Value, Value g) {
  int axis = static_cast<int>(attrs.integer("axis"));
  int64_t start = attrs.integer("start"), stride = attrs.integer("stride"), count = g.shape()[axis];
  int64_t used = count ? (count - 1) * stride + 1 : 0;
  return {pad(g, axis, start, in[0].shape()[axis] - start - used, stride - 1)};
}

std::vector<Value> grad_concat(Inputs in, const Attrs& attrs, Value, Value g) {
  int axis = static_cast<int>(attrs.integer("axis"));
  std::vector<Value> grads;
  int64_t at = 0;
  for (const Value& part : in) {
    grads.push_back(slice(g, axis, at, at + part.shape()[axis]));
    at += part.shape()[axis];
  }
  return grads;
}

std::vector<Value> grad_broadcast(Inputs in, const Attrs&, Value, Value g) { return {sum_to(g, in[0].shape())}; }

std::vector<Value> grad_pad(Inputs in, const Attrs& attrs, Value, Value g) {
  int axis = static_cast<int>(attrs.integer("axis"));
  int64_t before = attrs.integer("before"), stride = attrs.integer("interior") + 1, extent = in[0].shape()[axis];
  return {slice(g, axis, before, extent ? before + (extent - 1) * stride + 1 : before, stride)};
}

Value decompose_pad_edge(Inputs in, const Attrs& attrs) {
  Value x = in[0];
  for (int i = 0; i < x.shape().rank(); ++i) {
    int64_t before = attrs.ints("before")[static_cast<size_t>(i)], after = attrs.ints("after")[static_cast<size_t>(i)];
    int64_t extent = x.shape()[i];
    std::vector<Value> parts;
    if (before) parts.push_back(broadcast_to(slice(x, i, 0, 1), x.shape().with(i, before)));
    parts.push_back(x);
    if (after) parts.push_back(broadcast_to(slice(x, i, extent - 1, extent), x.shape().with(i, after)));
    x = concat(parts, i);
  }
  return x;
}

Value decompose_upsample2(Inputs in, const Attrs&) { return repeat_interleave(repeat_interleave(in[0], 1, 2), 2, 2); }

}  // namespace

const OpDef kReshape{"reshape", infer_reshape, grad_reshape};
const OpDef kPart{"part", infer_part, no_gradient};
const OpDef kPermute{"permute", infer_permute, grad_permute};
const OpDef kSlice{"slice", infer_slice, grad_slice};
const OpDef kConcat{"concat", infer_concat, grad_concat};
const OpDef kBroadcast{"broadcast", infer_broadcast, grad_broadcast};
const OpDef kPad{"pad", infer_pad, grad_pad};
const OpDef kPadEdge{"pad_edge", infer_pad_edge, nullptr, decompose_pad_edge};
const OpDef kUpsample2{"upsample_nearest2", infer_upsample2, nullptr, decompose_upsample2};

static Ints as_ints(const Shape& shape) { return {shape.dims().begin(), shape.dims().end()}; }
static int64_t positive(const Value& x, int axis) { return axis < 0 ? axis + x.shape().rank() : axis; }

Value reshape(Value x, const Shape& shape) {
  return x.shape() == shape ? x : apply(kReshape, {x}, {{"shape", as_ints(shape)}});
}
Value part(Value x, int64_t offset, const Shape& shape, DType dtype) {
  return apply(kPart, {x}, {{"offset", offset}, {"shape", as_ints(shape)}, {"dtype", static_cast<int64_t>(dtype)}});
}
Value permute(Value x, Ints order) { return apply(kPermute, {x}, {{"order", std::move(order)}}); }

Value transpose_last(Value x) {
  Ints order;
  for (int i = 0; i < x.shape().rank(); ++i) order.push_back(i);
  std::swap(order[order.size() - 1], order[order.size() - 2]);
  return permute(x, order);
}

Value slice(Value x, int axis, int64_t start, int64_t stop, int64_t stride) {
  int64_t at = positive(x, axis);
  if (start == 0 && stride == 1 && stop == x.shape()[static_cast<int>(at)]) return x;
  return apply(kSlice, {x}, {{"axis", at}, {"start", start}, {"stop", stop}, {"stride", stride}});
}

std::vector<Value> split(Value x, int axis, int parts) {
  int64_t extent = x.shape()[axis] / parts;
  check(extent * parts == x.shape()[axis], "split: the axis does not divide evenly");
  std::vector<Value> result;
  for (int i = 0; i < parts; ++i) result.push_back(slice(x, axis, i * extent, (i + 1) * extent));
  return result;
}

Value concat(std::span<const Value> parts, int axis) {
  return parts.size() == 1 ? parts[0] : apply(kConcat, parts, {{"axis", positive(parts[0], axis)}});
}
Value concat(std::initializer_list<Value> parts, int axis) {
  return concat(std::span<const Value>(parts.begin(), parts.size()), axis);
}

Value broadcast_to(Value x, const Shape& shape) {
  return x.shape() == shape ? x : apply(kBroadcast, {x}, {{"shape", as_ints(shape)}});
}

Value pad(Value x, int axis, int64_t before, int64_t after, int64_t interior) {
  if (before == 0 && after == 0 && interior == 0) return x;
  return apply(kPad, {x}, {{"axis", positive(x, axis)}, {"before", before}, {"after", after}, {"interior", interior}});
}

Value pad_edge(Value x, Ints before, Ints after) {
  return apply(kPadEdge, {x}, {{"before", std::move(before)}, {"after", std::move(after)}});
}

Value repeat_interleave(Value x, int axis, int64_t times) {
  Ints dims = as_ints(x.shape());
  auto at = dims.begin() + positive(x, axis);
  Ints outer = dims;
  outer.insert(outer.begin() + (at - dims.begin()) + 1, 1);
  Ints wide = outer;
  wide[static_cast<size_t>(at - dims.begin()) + 1] = times;
  *at *= times;
  Value y = reshape(x, Shape(std::span<const int64_t>(outer)));
  return reshape(broadcast_to(y, Shape(std::span<const int64_t>(wide))), Shape(std::span<const int64_t>(dims)));
}

Value upsample_nearest2(Value x) { return apply(kUpsample2, {x}); }

Value pixel_shuffle(Value x, int64_t r) {
  const Shape s = x.shape();  // [batch, height, width, channels·r·r], channel order (c, ry, rx)
  int64_t c = s[3] / (r * r);
  Value y = reshape(x, {s[0], s[1], s[2], c, r, r});
  return reshape(permute(y, {0, 1, 4, 2, 5, 3}), {s[0], s[1] * r, s[2] * r, c});
}

Value pixel_unshuffle(Value x, int64_t r) {
  const Shape s = x.shape();  // [batch, height, width, channels]
  Value y = reshape(x, {s[0], s[1] / r, r, s[2] / r, r, s[3]});
  return reshape(permute(y, {0, 1, 3, 5, 2, 4}), {s[0], s[1] / r, s[2] / r, s[3] * r * r});
}

Value upsample_nearest3d(Value x, bool frames) {
  const Shape s = x.shape();
  Value y = upsample_nearest2(reshape(x, {s[0] * s[1], s[2], s[3], s[4]}));
  y = reshape(y, {s[0], s[1], 2 * s[2], 2 * s[3], s[4]});
  return frames ? repeat_interleave(y, 1, 2) : y;
}

Value pixel_shuffle3d(Value x, int64_t rt, int64_t r) {
  const Shape s = x.shape();
  int64_t c = s[4] / (rt * r * r), rows = s[0] * s[1];
  // Width first, so that the rank stays within Shape's: [rows, h, w, c·rt·r, rx] -> [rows, h, w·rx, c·rt·r].
  Value y = permute(reshape(x, {rows, s[2], s[3], c * rt * r, r}), {0, 1, 2, 4, 3});
  y = permute(reshape(y, {rows, s[2], s[3] * r, c * rt, r}), {0, 1, 4, 2, 3});  // [rows, h, ry, w, c·rt]
  y = permute(reshape(y, {s[0], s[1], s[2] * r * s[3] * r, c, rt}), {0, 1, 4, 2, 3});
  return reshape(y, {s[0], s[1] * rt, s[2] * r, s[3] * r, c});
}

Value pixel_unshuffle3d(Value x, int64_t rt, int64_t r) {
  const Shape s = x.shape();
  int64_t t = s[1] / rt, h = s[2] / r, w = s[3] / r, c = s[4];
  Value y = permute(reshape(x, {s[0] * t, rt, s[2] * s[3], c}), {0, 2, 3, 1});  // [rows, h·w, c, rt]
  y = permute(reshape(y, {s[0] * t, h, r, s[3], c * rt}), {0, 1, 3, 4, 2});     // [rows, h, w, c·rt, ry]
  y = permute(reshape(y, {s[0] * t, h, w, r, c * rt * r}), {0, 1, 2, 4, 3});    // [.., c·rt·ry, rx]
  return reshape(y, {s[0], t, h, w, c * rt * r * r});
}

}  // namespace kinora
