#include "ops/conv.h"

#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/shaping.h"
#include "ops/table.h"

namespace kinora {
namespace {

// The weight's shape in the checkpoint's order.
Shape oihw(const Shape& weight, const std::string& layout) {
  if (weight.rank() != 4 || layout == "oihw") return weight;
  if (layout != "ohwi") fail(ErrorKind::internal, "weight_layout \"" + layout + "\" is not known (oihw, ohwi)");
  return {weight[0], weight[3], weight[1], weight[2]};
}
Shape oithw(const Shape& weight, const std::string& layout) {
  if (weight.rank() != 5 || layout == "oithw") return weight;
  if (layout != "othwi") fail(ErrorKind::internal, "weight_layout \"" + layout + "\" is not known (oithw, othwi)");
  return {weight[0], weight[4], weight[1], weight[2], weight[3]};
}

TensorSpec infer_conv2d(std::span<const TensorSpec> in, const Attrs& attrs) {
  expect_inputs(in, 2, 3);
  for (const TensorSpec& spec : in) expect_float(spec);
  const Shape x = in[0].shape, w = oihw(in[1].shape, attrs.text("weight_layout"));
  int64_t stride = attrs.integer("stride"), padding = attrs.integer("padding"), groups = attrs.integer("groups");
  if (x.rank() != 4 || w.rank() != 4)
    fail(ErrorKind::internal, "x [b, h, w, c] and weight [o, c/groups, kh, kw] are needed");
  if (stride < 1 || padding < 0 || groups < 1 || w[1] * groups != x[3] || w[0] % groups != 0) {
    fail(ErrorKind::internal, "the channels do not fit " + std::to_string(groups) + " groups");
  }
  int64_t height = x[1] + 2 * padding - w[2], width = x[2] + 2 * padding - w[3];
  if (height < 0 || width < 0) fail(ErrorKind::internal, "the kernel is larger than the picture");
  if (in.size() == 3) expect_shape("bias", in[2].shape, {w[0]});
  return {{x[0], height / stride + 1, width / stride + 1, w[0]}, in[0].dtype};
}

// One group: the sum over kernel positions of a shifted picture times a 1x1 weight.
Value conv_group(Value padded, Value weight, const Shape& out, int64_t stride) {
  bool depthwise = weight.shape()[1] == 1 && weight.shape()[0] == padded.shape()[3];
  Value total;
  for (int64_t ky = 0; ky < weight.shape()[2]; ++ky) {
    for (int64_t kx = 0; kx < weight.shape()[3]; ++kx) {
      Value rows = slice(padded, 1, ky, ky + (out[1] - 1) * stride + 1, stride);
      Value view = slice(rows, 2, kx, kx + (out[2] - 1) * stride + 1, stride);
      Value tap = slice(slice(weight, 2, ky, ky + 1), 3, kx, kx + 1);
      Value term = depthwise ? view * reshape(tap, {weight.shape()[0]})
                             : linear(view, reshape(tap, {weight.shape()[0], weight.shape()[1]}));
      total = total.defined() ? total + term : term;
    }
  }
  return total;
}

Value decompose_conv2d(std::span<const Value> in, const Attrs& attrs) {
  if (attrs.text("weight_layout") == "ohwi") {
    std::vector<Value> inputs(in.begin(), in.end());
    inputs[1] = permute(in[1], {0, 3, 1, 2});
    Attrs stored = attrs;
    stored.set("weight_layout", std::string("oihw"));
    return apply(kConv2d, inputs, stored);
  }
  int64_t padding = attrs.integer("padding"), stride = attrs.integer("stride"), groups = attrs.integer("groups");
  if (const std::string& act = attrs.text("act"); act != "none") {
    Value y = conv2d(in[0], in[1], in.size() == 3 ? in[2] : Value(),
                     {.stride = stride, .padding = padding, .groups = groups});
    return activation(y, act);
  }
  Value weight = cast(in[1], in[0].dtype());
  Value padded = pad(pad(in[0], 1, padding, padding), 2, padding, padding);
  TensorSpec specs[] = {{in[0].shape(), in[0].dtype()}, {weight.shape(), weight.dtype()}};
  Shape out = infer_conv2d(specs, attrs).shape;
  std::vector<Value> parts;
  if (groups == in[0].shape()[3] && groups == weight.shape()[0]) {
    parts.push_back(conv_group(padded, weight, out, stride));
  } else {
    std::vector<Value> xs = split(padded, 3, static_cast<int>(groups)), ws = split(weight, 0, static_cast<int>(groups));
    for (size_t i = 0; i < xs.size(); ++i) parts.push_back(conv_group(xs[i], ws[i], out, stride));
  }
  Value y = concat(parts, 3);
  return in.size() == 3 ? y + cast(in[2], y.dtype()) : y;
}

Attrs depthwise_attrs(const Shape& weight) {
  return {{"stride", int64_t{1}}, {"padding", weight[2] / 2}, {"groups", weight[0]}, {"weight_layout", "oihw"}};
}

TensorSpec infer_conv3d(std::span<const TensorSpec> in, const Attrs& attrs) {
  expect_inputs(in, 2, 3);
  for (const TensorSpec& spec : in) expect_float(spec);
  const Shape x = in[0].shape, w = oithw(in[1].shape, attrs.text("weight_layout"));
  const Ints &stride = attrs.ints("stride"), &padding = attrs.ints("padding");
  int64_t groups = attrs.integer("groups");
  if (x.rank() != 5 || w.rank() != 5 || stride.size() != 3 || padding.size() != 3)
    fail(ErrorKind::internal, "x [b, t, h, w, c] and weight [o, c/groups, kt, kh, kw] are needed");
  if (groups < 1 || w[1] * groups != x[4] || w[0] % groups != 0)
    fail(ErrorKind::internal, "the channels do not fit " + std::to_string(groups) + " groups");
  Shape out = x.with(4, w[0]);
  for (int i = 0; i < 3; ++i) {
    int64_t s = stride[static_cast<size_t>(i)], p = padding[static_cast<size_t>(i)], k = w[i + 2];
    if (s < 1 || p < 0 || p >= k) fail(ErrorKind::internal, "padding must be less than the kernel, strides positive");
    if (x[i + 1] + 2 * p < k) fail(ErrorKind::internal, "the kernel is larger than the film");
    out = out.with(i + 1, (x[i + 1] + 2 * p - k) / s + 1);
  }
  if (in.size() == 3) expect_shape("bias", in[2].shape, {w[0]});
  return {out, in[0].dtype};
}

// The sum over the kernel's frames of 2D convolutions of shifted films.
Value decompose_conv3d(std::span<const Value> in, const Attrs& attrs) {
  if (attrs.text("weight_layout") == "othwi") {
    std::vector<Value> inputs(in.begin(), in.end());
    inputs[1] = permute(in[1], {0, 4, 1, 2, 3});
    Attrs stored = attrs;
    stored.set("weight_layout", std::string("oithw"));
    return apply(kConv3d, inputs, stored);
  }
  const Ints &stride = attrs.ints("stride"), &padding = attrs.ints("padding");
  if (const std::string& act = attrs.text("act"); act != "none") {
    Attrs plain = attrs;
    plain.set("act", std::string("none"));
    return activation(apply(kConv3d, in, plain), act);
  }
  Value x = in[0], w = in[1];
  TensorSpec specs[] = {{x.shape(), x.dtype()}, {w.shape(), w.dtype()}};
  Shape out = infer_conv3d(specs, attrs).shape;
  bool square = stride[1] == stride[2] && padding[1] == padding[2];
  x = pad(x, 1, padding[0], padding[0]);
  if (!square) x = pad(pad(x, 2, padding[1], padding[1]), 3, padding[2], padding[2]);
  Conv2dOptions plane{.stride = square ? stride[1] : 1, .padding = square ? padding[1] : 0};
  plane.groups = attrs.integer("groups");
  Value total;
  for (int64_t t = 0; t < w.shape()[2]; ++t) {
    Value frames = slice(x, 1, t, t + (out[1] - 1) * stride[0] + 1, stride[0]);
    const Shape s = frames.shape(), k = w.shape();
    Value y = conv2d(reshape(frames, {s[0] * s[1], s[2], s[3], s[4]}),
                     reshape(slice(w, 2, t, t + 1), {k[0], k[1], k[3], k[4]}), {}, plane);
    if (!square) {
      y = slice(y, 1, 0, (out[2] - 1) * stride[1] + 1, stride[1]);
      y = slice(y, 2, 0, (out[3] - 1) * stride[2] + 1, stride[2]);
    }
    y = reshape(y, out);
    total = total.defined() ? total + y : y;
  }
  return in.size() == 3 ? total + cast(in[2], total.dtype()) : total;
}

TensorSpec infer_depthwise_glu(std::span<const TensorSpec> in, const Attrs&) {
  expect_inputs(in, 2, 3);
  const Shape& w = in[1].shape;
  if (w.rank() != 4 || w[1] != 1 || w[0] % 2 != 0 || w[2] != w[3] || w[2] % 2 == 0) {
    fail(ErrorKind::internal, "weight [even channels, 1, odd k, k] is needed");
  }
  TensorSpec out = infer_conv2d(in, depthwise_attrs(w));
  return {out.shape.with(3, w[0] / 2), out.dtype};
}

Value decompose_depthwise_glu(std::span<const Value> in, const Attrs& attrs) {
  const Shape& w = in[1].shape();
  Value x = activation(in[0], attrs.text("act"));
  return glu(conv2d(x, in[1], in.size() == 3 ? in[2] : Value(), {.padding = w[2] / 2, .groups = w[0]}));
}

TensorSpec infer_interleave_phases(std::span<const TensorSpec> in, const Attrs&) {
  expect_inputs(in, 1, 2);
  const Shape& s = in[0].shape;
  if (s.rank() != 4 || s[1] < 2 || s[2] < 2 || s[3] % 4 != 0) {
    fail(ErrorKind::internal, "[batch, h + 1, w + 1, 4 channels] is needed");
  }
  if (in.size() == 2) {
    Shape small{s[0], s[1] - 1, s[2] - 1, s[3] / 4}, wide = small.with(3, s[3] / 2);
    if (in[1].dtype != in[0].dtype || !(in[1].shape == small || in[1].shape == wide)) {
      fail(ErrorKind::internal,
           "the shortcut must be " + small.str() + " or " + wide.str() + " of x's type, not " + in[1].shape.str());
    }
  }
  return {{s[0], 2 * (s[1] - 1), 2 * (s[2] - 1), s[3] / 4}, in[0].dtype};
}

Value decompose_interleave_phases(std::span<const Value> in, const Attrs&) {
  const Shape s = in[0].shape();
  if (in.size() == 2) {
    return interleave_phases(in[0]) + pixel_shuffle(repeat_interleave(in[1], 3, s[3] / in[1].shape()[3]), 2);
  }
  int64_t h = s[1] - 1, w = s[2] - 1, c = s[3] / 4;
  std::vector<Value> rows;
  for (int64_t r = 0; r < 2; ++r) {
    std::vector<Value> columns;
    for (int64_t column = 0; column < 2; ++column) {
      int64_t phase = 2 * r + column;
      Value part = slice(slice(in[0], 1, r, r + h), 2, column, column + w);
      columns.push_back(reshape(slice(part, 3, phase * c, (phase + 1) * c), {s[0], h, 1, w, 1, c}));
    }
    rows.push_back(concat(columns, 4));
  }
  return reshape(concat(rows, 2), {s[0], 2 * h, 2 * w, c});
}

TensorSpec infer_interleave_phases3d(std::span<const TensorSpec> in, const Attrs&) {
  expect_inputs(in, 1);
  const Shape& s = in[0].shape;
  if (s.rank() != 5 || s[1] < 1 || s[2] < 2 || s[3] < 2 || s[4] % 8 != 0) {
    fail(ErrorKind::internal, "[batch, frames, h + 1, w + 1, 8 channels] is needed");
  }
  return {{s[0], 2 * s[1] - 1, 2 * (s[2] - 1), 2 * (s[3] - 1), s[4] / 8}, in[0].dtype};
}

// As of pictures, with the two phases of a frame one after the other; the first phase of the first frame is not there.
Value decompose_interleave_phases3d(std::span<const Value> in, const Attrs&) {
  const Shape s = in[0].shape();
  int64_t pictures = s[0] * s[1], c = s[4] / 2;
  std::vector<Value> phases;
  for (Value half : split(in[0], 4, 2)) {
    Value y = interleave_phases(reshape(half, {pictures, s[2], s[3], c}));
    phases.push_back(reshape(y, {s[0], s[1], 1, y.shape().product(1, 4)}));
  }
  Value frames = reshape(concat(phases, 2), {s[0], 2 * s[1], 2 * (s[2] - 1), 2 * (s[3] - 1), c / 4});
  return slice(frames, 1, 1, 2 * s[1]);
}

}  // namespace

const OpDef kConv2d{"conv2d", infer_conv2d, nullptr, decompose_conv2d};
const OpDef kConv3d{"conv3d", infer_conv3d, nullptr, decompose_conv3d};
const OpDef kInterleavePhases{"interleave_phases", infer_interleave_phases, nullptr, decompose_interleave_phases};
const OpDef kInterleavePhases3d{"interleave_phases3d", infer_interleave_phases3d, nullptr,
                                decompose_interleave_phases3d};
const OpDef kDepthwiseGlu{"depthwise_glu", infer_depthwise_glu, nullptr, decompose_depthwise_glu};

Value conv2d(Value x, Value weight, Value bias, const Conv2dOptions& o) {
  Attrs attrs{{"stride", o.stride},
              {"padding", o.padding},
              {"groups", o.groups},
              {"act", o.act},
              {"weight_layout", o.weight_layout}};
  return bias.defined() ? apply(kConv2d, {x, weight, bias}, attrs) : apply(kConv2d, {x, weight}, attrs);
}

Value conv3d(Value x, Value weight, Value bias, const Conv3dOptions& o) {
  Attrs attrs{{"stride", Ints(o.stride.begin(), o.stride.end())},
              {"padding", Ints(o.padding.begin(), o.padding.end())},
              {"groups", o.groups},
              {"act", o.act},
              {"weight_layout", o.weight_layout}};
  return bias.defined() ? apply(kConv3d, {x, weight, bias}, attrs) : apply(kConv3d, {x, weight}, attrs);
}

Value depthwise_glu(Value x, Value weight, Value bias, const std::string& act) {
  Attrs attrs{{"act", act}};
  return bias.defined() ? apply(kDepthwiseGlu, {x, weight, bias}, attrs) : apply(kDepthwiseGlu, {x, weight}, attrs);
}

Value interleave_phases(Value x, Value shortcut) {
  return shortcut.defined() ? apply(kInterleavePhases, {x, shortcut}) : apply(kInterleavePhases, {x});
}
Value interleave_phases3d(Value x) { return apply(kInterleavePhases3d, {x}); }

}  // namespace kinora
