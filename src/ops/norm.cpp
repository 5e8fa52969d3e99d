#include "ops/norm.h"

#include <array>

#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shaping.h"
#include "ops/table.h"

namespace kinora {
namespace {

TensorSpec infer_layer_norm(std::span<const TensorSpec> in, const Attrs&) {
  expect_inputs(in, 1, 3);
  expect_float(in[0]);
  for (const TensorSpec& spec : in) {
    if (!(broadcast(in[0].shape, spec.shape) == in[0].shape) || spec.dtype != in[0].dtype) {
      fail(ErrorKind::internal, "scale and shift must broadcast to x, in its type");
    }
  }
  return in[0];
}

Value decompose_layer_norm(std::span<const Value> in, const Attrs& attrs) {
  Value x = cast(in[0], DType::f32);
  Value centred = x - mean(x, {-1});
  Value y = centred * rsqrt(affine(mean(centred * centred, {-1}), 1, attrs.real("eps")));
  if (in.size() == 3) y = y * affine(cast(in[1], DType::f32), 1, 1) + cast(in[2], DType::f32);
  return cast(y, in[0].dtype());
}

TensorSpec infer_rms_norm(std::span<const TensorSpec> in, const Attrs& attrs) {
  expect_inputs(in, 1, 3);
  expect_float(in[0]);
  for (size_t i = 1; i < in.size(); ++i) {
    expect_float(in[i]);
    expect_shape(i == 1 ? "weight" : "bias", in[i].shape, {in[0].shape[-1]});
  }
  TensorSpec out = in[0];
  if (attrs.has("to")) out.dtype = static_cast<DType>(attrs.integer("to"));
  expect_float(out);
  return out;
}

Value decompose_rms_norm(std::span<const Value> in, const Attrs& attrs) {
  Value x = cast(in[0], DType::f32);
  Value y = x * rsqrt(affine(mean(x * x, {-1}), 1, attrs.real("eps")));
  if (in.size() > 1) y = y * affine(cast(in[1], DType::f32), 1, attrs.real("offset"));
  if (in.size() > 2) y = y + cast(in[2], DType::f32);
  if (attrs.has("act")) y = activation(y, attrs.text("act"));
  return cast(y, attrs.has("to") ? static_cast<DType>(attrs.integer("to")) : in[0].dtype());
}

TensorSpec infer_group_norm(std::span<const TensorSpec> in, const Attrs& attrs) {
  expect_inputs(in, 3);
  for (const TensorSpec& spec : in) expect_float(spec);
  const Shape& x = in[0].shape;
  int64_t groups = attrs.integer("groups");
  if (x.rank() < 2 || groups < 1 || x[-1] % groups != 0)
    fail(ErrorKind::internal, "[batch, .., channels] is needed, the channels a multiple of " + std::to_string(groups));
  expect_shape("weight", in[1].shape, {x[-1]});
  expect_shape("bias", in[2].shape, {x[-1]});
  return in[0];
}

Value decompose_group_norm(std::span<const Value> in, const Attrs& attrs) {
  const Shape s = in[0].shape();
  int64_t groups = attrs.integer("groups");
  Value x = reshape(cast(in[0], DType::f32), {s[0], s.product(1, s.rank() - 1), groups, s[-1] / groups});
  Value centred = x - mean(x, {1, 3});
  Value y = centred * rsqrt(affine(mean(centred * centred, {1, 3}), 1, attrs.real("eps")));
  y = reshape(y, s) * cast(in[1], DType::f32) + cast(in[2], DType::f32);
  return cast(activation(y, attrs.text("act")), in[0].dtype());
}

TensorSpec infer_group_norm_pad(std::span<const TensorSpec> in, const Attrs& attrs) {
  TensorSpec padded = infer_group_norm(in, attrs);
  const Ints &before = attrs.ints("before"), &after = attrs.ints("after");
  auto rank = static_cast<size_t>(padded.shape.rank());
  if (before.size() != rank || after.size() != rank || before[0] + after[0] + before.back() + after.back() != 0)
    fail(ErrorKind::internal, "a padding for each axis is needed, none for the batch and the channels");
  return kPadEdge.infer({&padded, 1}, attrs);
}

Value decompose_group_norm_pad(std::span<const Value> in, const Attrs& attrs) {
  Value y = group_norm(in[0], in[1], in[2], attrs.integer("groups"), attrs.real("eps"), attrs.text("act"));
  return pad_edge(y, attrs.ints("before"), attrs.ints("after"));
}

// Inputs: x, residual, then as rms_norm.
TensorSpec infer_rms_norm_add(std::span<const TensorSpec> in, const Attrs& attrs) {
  expect_inputs(in, 2, 4);
  if (!(in[1] == in[0])) fail(ErrorKind::internal, "residual and x must be alike");
  std::vector<TensorSpec> plain{in[0]};
  plain.insert(plain.end(), in.begin() + 2, in.end());
  return infer_rms_norm(plain, attrs);
}

Value decompose_rms_norm_add(std::span<const Value> in, const Attrs& attrs) {
  std::vector<Value> plain{cast(in[0], DType::f32)};
  plain.insert(plain.end(), in.begin() + 2, in.end());
  return cast(cast(in[1], DType::f32) + apply(kRmsNorm, plain, attrs), in[0].dtype());
}

// A sum and what is made of it, which has its type and shape, as bytes.
Value packed(Value sum, Value made) {
  TensorSpec spec{sum.shape(), sum.dtype()};
  auto bytes = static_cast<int64_t>(spec.bytes());
  std::vector<Value> parts{part(sum, 0, {bytes}, DType::u8)};
  if (int64_t gap = bytes_before_made(spec) - bytes) {
    parts.push_back(sum.graph().constant(Tensor::zeros({gap}, DType::u8)));
  }
  parts.push_back(part(made, 0, {bytes}, DType::u8));
  return concat(parts, 0);
}

// Inputs: a, b, c, then as layer_norm.
TensorSpec infer_mul_add_norm(std::span<const TensorSpec> in, const Attrs& attrs) {
  expect_inputs(in, in.size() > 3 ? 5 : 3);
  TensorSpec sum = kMulAdd.infer(in.first(3), attrs);
  expect_shape("the sum", sum.shape, in[2].shape);
  kLayerNorm.infer(in.subspan(2), attrs);
  return {{bytes_before_made(sum) + static_cast<int64_t>(sum.bytes())}, DType::u8};
}

Value decompose_mul_add_norm(std::span<const Value> in, const Attrs& attrs) {
  Value sum = mul_add(in[0], in[1], in[2]);
  Value y = in.size() == 5 ? layer_norm(sum, attrs.real("eps"), in[3], in[4]) : layer_norm(sum, attrs.real("eps"));
  return packed(sum, y);
}

// Inputs: x, residual and the two weights.
TensorSpec infer_rms_norm_add_norm(std::span<const TensorSpec> in, const Attrs& attrs) {
  expect_inputs(in, 4);
  TensorSpec sum = infer_rms_norm_add(in.first(3), attrs);
  infer_rms_norm(std::array{sum, in[3]}, attrs);
  return {{bytes_before_made(sum) + static_cast<int64_t>(sum.bytes())}, DType::u8};
}

Value decompose_rms_norm_add_norm(std::span<const Value> in, const Attrs& attrs) {
  Value sum = rms_norm_add(in[0], in[1], in[2], {}, attrs.real("eps"), attrs.real("offset"));
  return packed(sum, rms_norm(sum, in[3], {}, attrs.real("second_eps"), attrs.real("second_offset")));
}

std::vector<Value> no_gradient(std::span<const Value> in, const Attrs&, Value, Value) {
  return std::vector<Value>(in.size());
}

}  // namespace

const OpDef kLayerNorm{"layer_norm", infer_layer_norm, nullptr, decompose_layer_norm};
const OpDef kRmsNorm{"rms_norm", infer_rms_norm, nullptr, decompose_rms_norm};
const OpDef kGroupNorm{"group_norm", infer_group_norm, nullptr, decompose_group_norm};
const OpDef kGroupNormPad{"group_norm_pad", infer_group_norm_pad, nullptr, decompose_group_norm_pad};
const OpDef kRmsNormAdd{"rms_norm_add", infer_rms_norm_add, nullptr, decompose_rms_norm_add};
const OpDef kMulAddNorm{"mul_add_norm", infer_mul_add_norm, no_gradient, decompose_mul_add_norm};
const OpDef kRmsNormAddNorm{"rms_norm_add_norm", infer_rms_norm_add_norm, no_gradient, decompose_rms_norm_add_norm};

Value layer_norm(Value x, double eps, Value scale, Value shift) {
  Attrs attrs{{"eps", eps}};
  return scale.defined() ? apply(kLayerNorm, {x, scale, shift}, attrs) : apply(kLayerNorm, {x}, attrs);
}

Value rms_norm(Value x, Value weight, Value bias, double eps, double offset) {
  Attrs attrs{{"eps", eps}, {"offset", offset}};
  if (!weight.defined()) return apply(kRmsNorm, {x}, attrs);
  return bias.defined() ? apply(kRmsNorm, {x, weight, bias}, attrs) : apply(kRmsNorm, {x, weight}, attrs);
}

Value group_norm(Value x, Value weight, Value bias, int64_t groups, double eps, const std::string& act) {
  return apply(kGroupNorm, {x, weight, bias}, {{"groups", groups}, {"eps", eps}, {"act", act}});
}

Value group_norm_pad(Value x, Value weight, Value bias, int64_t groups, double eps, const std::string& act, Ints before,
                     Ints after) {
  return apply(
      kGroupNormPad, {x, weight, bias},
      {{"groups", groups}, {"eps", eps}, {"act", act}, {"before", std::move(before)}, {"after", std::move(after)}});
}

Value rms_norm_add(Value x, Value residual, Value weight, Value bias, double eps, double offset) {
  std::vector<Value> inputs{x, residual};
  if (weight.defined()) inputs.push_back(weight);
  if (bias.defined()) inputs.push_back(bias);
  return apply(kRmsNormAdd, inputs, {{"eps", eps}, {"offset", offset}});
}

Value mul_add_norm(Value a, Value b, Value c, double eps, Value scale, Value shift) {
  std::vector<Value> inputs{a, b, c};
  if (scale.defined()) inputs.insert(inputs.end(), {scale, shift});
  return apply(kMulAddNorm, inputs, {{"eps", eps}});
}

Value rms_norm_add_norm(Value x, Value residual, const RmsWeight& first, const RmsWeight& second) {
  return apply(
      kRmsNormAddNorm, {x, residual, first.weight, second.weight},
      {{"eps", first.eps}, {"offset", first.offset}, {"second_eps", second.eps}, {"second_offset", second.offset}});
}

Value sum_of(Value packed, const Shape& shape, DType dtype) { return part(packed, 0, shape, dtype); }

Value normed_of(Value packed, const Shape& shape, DType dtype) {
  return part(packed, bytes_before_made({shape, dtype}), shape, dtype);
}

}  // namespace kinora
