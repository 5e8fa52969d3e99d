#include "ops/elementwise.h"

#include <cmath>
#include <numbers>

#include "ops/reduce.h"
#include "ops/table.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;
using Specs = std::span<const TensorSpec>;

TensorSpec infer_binary(Specs in, const Attrs&) {
  expect_inputs(in, 2);
  if (in[0].dtype != in[1].dtype || !is_float(in[0].dtype)) {
    fail(ErrorKind::internal, "element types " + std::string(dtype_name(in[0].dtype)) + " and " +
                                  std::string(dtype_name(in[1].dtype)) + " do not go together");
  }
  return {broadcast(in[0].shape, in[1].shape), in[0].dtype};
}

TensorSpec infer_unary(Specs in, const Attrs&) {
  expect_inputs(in, 1);
  expect_float(in[0]);
  return in[0];
}

TensorSpec infer_mul_add(Specs in, const Attrs& attrs) {
  expect_inputs(in, 3);
  TensorSpec product = infer_binary(in.first(2), attrs), both[] = {product, in[2]};
  return infer_binary(both, attrs);
}

TensorSpec infer_cast(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  return {in[0].shape, static_cast<DType>(attrs.integer("dtype"))};
}

// The gradient of a broadcast input is summed back to the input's shape.
std::vector<Value> unbroadcast(Inputs in, Value a, Value b) {
  return {sum_to(a, in[0].shape()), sum_to(b, in[1].shape())};
}

std::vector<Value> grad_add(Inputs in, const Attrs&, Value, Value g) { return unbroadcast(in, g, g); }
std::vector<Value> grad_sub(Inputs in, const Attrs&, Value, Value g) { return unbroadcast(in, g, affine(g, -1, 0)); }
std::vector<Value> grad_mul(Inputs in, const Attrs&, Value, Value g) { return unbroadcast(in, g * in[1], g * in[0]); }
std::vector<Value> grad_div(Inputs in, const Attrs&, Value y, Value g) {
  Value da = g / in[1];
  return unbroadcast(in, da, affine(da * y, -1, 0));
}
std::vector<Value> grad_affine(Inputs, const Attrs& attrs, Value, Value g) {
  return {affine(g, attrs.real("scale"), 0)};
}
std::vector<Value> grad_exp(Inputs, const Attrs&, Value y, Value g) { return {g * y}; }
std::vector<Value> grad_log(Inputs in, const Attrs&, Value, Value g) { return {g / in[0]}; }
std::vector<Value> grad_sqrt(Inputs, const Attrs&, Value y, Value g) { return {affine(g / y, 0.5, 0)}; }
std::vector<Value> grad_rsqrt(Inputs, const Attrs&, Value y, Value g) { return {affine(g * y * y * y, -0.5, 0)}; }
std::vector<Value> grad_sin(Inputs in, const Attrs&, Value, Value g) { return {g * cos(in[0])}; }
std::vector<Value> grad_cos(Inputs in, const Attrs&, Value, Value g) { return {affine(g * sin(in[0]), -1, 0)}; }
std::vector<Value> grad_tanh(Inputs, const Attrs&, Value y, Value g) { return {g * affine(y * y, -1, 1)}; }
std::vector<Value> grad_sigmoid(Inputs, const Attrs&, Value y, Value g) { return {g * y * affine(y, -1, 1)}; }
std::vector<Value> grad_relu(Inputs in, const Attrs&, Value, Value g) { return {g * step(in[0])}; }
std::vector<Value> grad_step(Inputs, const Attrs&, Value, Value) { return {Value()}; }
std::vector<Value> grad_clamp(Inputs in, const Attrs& attrs, Value, Value g) {
  Value above = step(affine(in[0], 1, -attrs.real("low")));
  Value below = step(affine(in[0], -1, attrs.real("high")));
  return {g * above * below};
}
std::vector<Value> grad_cast(Inputs in, const Attrs&, Value, Value g) {
  return {is_float(in[0].dtype()) ? cast(g, in[0].dtype()) : Value()};
}

Value decompose_silu(Inputs in, const Attrs&) { return in[0] * sigmoid(in[0]); }

// The tanh form of GELU (Hendrycks & Gimpel, arXiv:1606.08415).
Value decompose_gelu_tanh(Inputs in, const Attrs&) {
  Value x = in[0];
  Value inner = affine(x + affine(x * x * x, 0.044715, 0), std::sqrt(2.0 / std::numbers::pi), 0);
  return affine(x, 0.5, 0) * affine(tanh(inner), 1, 1);
}

Value decompose_mul_add(Inputs in, const Attrs&) {
  DType dtype = in[0].dtype();
  return cast(cast(in[0], DType::f32) * cast(in[1], DType::f32) + cast(in[2], DType::f32), dtype);
}

Value decompose_act_mul(Inputs in, const Attrs& attrs) {
  DType dtype = in[0].dtype();
  return cast(activation(cast(in[0], DType::f32), attrs.text("act")) * cast(in[1], DType::f32), dtype);
}

}  // namespace

const OpDef kAdd{"add", infer_binary, grad_add};
const OpDef kSub{"sub", infer_binary, grad_sub};
const OpDef kMul{"mul", infer_binary, grad_mul};
const OpDef kDiv{"div", infer_binary, grad_div};
const OpDef kAffine{"affine", infer_unary, grad_affine};
const OpDef kExp{"exp", infer_unary, grad_exp};
const OpDef kLog{"log", infer_unary, grad_log};
const OpDef kSqrt{"sqrt", infer_unary, grad_sqrt};
const OpDef kRsqrt{"rsqrt", infer_unary, grad_rsqrt};
const OpDef kSin{"sin", infer_unary, grad_sin};
const OpDef kCos{"cos", infer_unary, grad_cos};
const OpDef kTanh{"tanh", infer_unary, grad_tanh};
const OpDef kSigmoid{"sigmoid", infer_unary, grad_sigmoid};
const OpDef kRelu{"relu", infer_unary, grad_relu};
const OpDef kStep{"step", infer_unary, grad_step};
const OpDef kClamp{"clamp", infer_unary, grad_clamp};
const OpDef kSilu{"silu", infer_unary, nullptr, decompose_silu};
const OpDef kGeluTanh{"gelu_tanh", infer_unary, nullptr, decompose_gelu_tanh};
const OpDef kCast{"cast", infer_cast, grad_cast};
const OpDef kMulAdd{"mul_add", infer_mul_add, nullptr, decompose_mul_add};
const OpDef kActMul{"act_mul", infer_binary, nullptr, decompose_act_mul};

Value add(Value a, Value b) { return apply(kAdd, {a, b}); }
Value sub(Value a, Value b) { return apply(kSub, {a, b}); }
Value mul(Value a, Value b) { return apply(kMul, {a, b}); }
Value div(Value a, Value b) { return apply(kDiv, {a, b}); }
Value affine(Value x, double scale, double shift) { return apply(kAffine, {x}, {{"scale", scale}, {"shift", shift}}); }
Value exp(Value x) { return apply(kExp, {x}); }
Value log(Value x) { return apply(kLog, {x}); }
Value sqrt(Value x) { return apply(kSqrt, {x}); }
Value rsqrt(Value x) { return apply(kRsqrt, {x}); }
Value sin(Value x) { return apply(kSin, {x}); }
Value cos(Value x) { return apply(kCos, {x}); }
Value tanh(Value x) { return apply(kTanh, {x}); }
Value sigmoid(Value x) { return apply(kSigmoid, {x}); }
Value relu(Value x) { return apply(kRelu, {x}); }
Value relu6(Value x) { return clamp(x, 0, 6); }
Value step(Value x) { return apply(kStep, {x}); }
Value clamp(Value x, double low, double high) { return apply(kClamp, {x}, {{"low", low}, {"high", high}}); }
Value silu(Value x) { return apply(kSilu, {x}); }
Value gelu_tanh(Value x) { return apply(kGeluTanh, {x}); }
Value cast(Value x, DType dtype) {
  return x.dtype() == dtype ? x : apply(kCast, {x}, {{"dtype", static_cast<int64_t>(dtype)}});
}
Value mul_add(Value a, Value b, Value c) { return apply(kMulAdd, {a, b, c}); }
Value act_mul(Value a, Value b, const std::string& act) { return apply(kActMul, {a, b}, {{"act", act}}); }

Value activation(Value x, const std::string& name) {
  if (name == "none") return x;
  if (name == "silu" || name == "swish") return silu(x);
  if (name == "relu") return relu(x);
  if (name == "relu6") return relu6(x);
  if (name == "gelu_tanh" || name == "gelu_pytorch_tanh") return gelu_tanh(x);
  fail(ErrorKind::model, "unknown activation '" + name + "' (known: silu, relu, relu6, gelu_tanh)");
}

}  // namespace kinora
