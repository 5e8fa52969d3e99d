#include "ops/quantize.h"

#include <map>

#include "graph/rewrite.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/shaping.h"
#include "ops/table.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;
using Specs = std::span<const TensorSpec>;

QuantFormat format_of(const Attrs& attrs) { return quant_format_from_name(attrs.text("format")); }
std::string name_of(QuantFormat format) { return std::string(quant_format_name(format)); }

// The checked shape [n, k] of the weight whose parts are at the front of `in`.
Shape weight_shape(Specs in, QuantFormat format) {
  const TensorSpec &codes = in[0], &scale = in[1];
  if (codes.dtype != code_type(format) || codes.shape.rank() != 2) {
    fail(ErrorKind::internal, "codes of " + name_of(format) + " are needed, not " +
                                  std::string(dtype_name(codes.dtype)) + " " + codes.shape.str());
  }
  Shape shape = decoded_shape(format, codes.shape);
  if (shape[1] % kQuantizedRowMultiple != 0) fail(ErrorKind::internal, "rows must be a multiple of 16 long");
  expect_shape("scale", scale.shape, scale_shape(format, shape));
  if (scale.dtype != scale_type(format)) fail(ErrorKind::internal, "the scale has the wrong type");
  if (is_nvfp4(format) && (in[2].dtype != DType::f32 || in[2].shape.rank() != 0)) {
    fail(ErrorKind::internal, "scale_2 must be one float32");
  }
  return shape;
}

TensorSpec infer_dequantize(Specs in, const Attrs& attrs) {
  QuantFormat format = format_of(attrs);
  expect_inputs(in, is_nvfp4(format) ? 3 : 2);
  return {weight_shape(in, format), DType::f32};
}

std::vector<Value> no_gradient(Inputs in, const Attrs&, Value, Value) { return std::vector<Value>(in.size()); }

void expect_finish(Specs in, const QuantizedInputs& at, const TensorSpec& out) {
  if (at.bias) {
    expect_float(in[at.bias]);
    expect_shape("bias", in[at.bias].shape, {out.shape[-1]});
  }
  if (at.residual) {
    expect_shape("residual", in[at.residual].shape, out.shape);
    if (in[at.residual].dtype != out.dtype) fail(ErrorKind::internal, "the residual differs from the result in type");
  }
  if (at.gate) {
    const Shape& gate = in[at.gate].shape;
    bool fits = gate.rank() >= 1 && gate[-1] == out.shape[-1] && broadcast(gate, out.shape) == out.shape;
    if (!fits || in[at.gate].dtype != out.dtype) fail(ErrorKind::internal, "the gate does not fit " + out.shape.str());
  }
}

TensorSpec infer_quantized_linear(Specs in, const Attrs& attrs) {
  QuantizedInputs at(attrs);
  expect_inputs(in, at.count);
  expect_float(in[0]);
  Shape weight = weight_shape(in.subspan(1), at.format);
  if (in[0].shape.rank() < 1 || in[0].shape[-1] != weight[1]) {
    fail(ErrorKind::internal, "x [.., K] and a weight [N, K] are needed");
  }
  TensorSpec out{in[0].shape.with(-1, weight[0]), in[0].dtype};
  expect_finish(in, at, out);
  return out;
}

void expect_rows(const TensorSpec& rows, QuantFormat format, int64_t m, int64_t k) {
  if (rows.dtype != DType::u8) fail(ErrorKind::internal, "quantized rows are u8");
  expect_shape("the quantized rows", rows.shape, {quantized_rows_bytes(format, m, k)});
}

// The shape [n, k] of a weight whose parts are, after the rows, codes, tiled scales and scale_2 for each output.
Shape tiled_weight_shape(Specs in) {
  Shape shape = decoded_shape(QuantFormat::nvfp4_both, in[1].shape);
  expect_shape("the tiled scale", in[2].shape, {tiled_scale_bytes(shape[0], shape[1] / kNvfp4Block)});
  expect_shape("scale_2", in[3].shape, {shape[0]});
  return shape;
}

TensorSpec infer_quantized_linear_rows(Specs in, const Attrs& attrs) {
  QuantizedInputs at(attrs);
  expect_inputs(in, at.count);
  if (!quantizes_rows(at.format)) fail(ErrorKind::internal, "this format keeps x as it is");
  bool tiled = has_tiled_scales(in[at.scale].shape, at.format);
  Shape weight = tiled ? tiled_weight_shape(in) : weight_shape(in.subspan(1), at.format);
  Ints dims = attrs.ints("rows");
  dims.push_back(weight[0]);
  TensorSpec out{Shape(std::span<const int64_t>(dims)), static_cast<DType>(attrs.integer("dtype"))};
  expect_float(out);
  expect_rows(in[0], at.format, out.shape.product(0, out.shape.rank() - 1), weight[1]);
  expect_finish(in, at, out);
  return out;
}

TensorSpec infer_quantize_rows(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  expect_float(in[0]);
  const Shape& x = in[0].shape;
  QuantFormat format = format_of(attrs);
  if (!quantizes_rows(format)) fail(ErrorKind::internal, "rows are quantized to int8, fp8 or nvfp4");
  if (x.rank() < 1 || x[-1] % kQuantizedRowMultiple != 0) {
    fail(ErrorKind::internal, "rows must be a multiple of 16 long");
  }
  return {{quantized_rows_bytes(format, x.product(0, x.rank() - 1), x[-1])}, DType::u8};
}

TensorSpec infer_dequantize_rows(Specs in, const Attrs& attrs) {
  expect_inputs(in, 1);
  int64_t m = attrs.integer("m"), k = attrs.integer("k");
  expect_rows(in[0], format_of(attrs), m, k);
  return {{m, k}, DType::f32};
}

QuantizedWeight weight_of(Inputs in, const QuantizedInputs& at) {
  return {at.format, in[at.codes], in[at.scale], at.scale_2 ? in[at.scale_2] : Value()};
}

QuantizedFinish finish_of(Inputs in, const QuantizedInputs& at, const Attrs& attrs) {
  auto given = [&](size_t i) { return i ? in[i] : Value(); };
  return {given(at.bias), attrs.text("act"), given(at.gate), given(at.residual)};
}

// The finish of a float32 product.
Value apply_finish(Value y, const QuantizedFinish& finish, DType dtype) {
  if (finish.gate.defined()) y = cast(finish.gate, DType::f32) * y;
  if (finish.residual.defined()) y = cast(finish.residual, DType::f32) + y;
  return cast(y, dtype);
}

Value decompose_quantized_linear(Inputs in, const Attrs& attrs) {
  QuantizedInputs at(attrs);
  Value x = in[0];
  QuantizedWeight weight = weight_of(in, at);
  QuantizedFinish finish = finish_of(in, at, attrs);
  if (quantizes_rows(at.format)) {
    std::span<const int64_t> dims = x.shape().dims();
    return quantized_linear_rows(quantize_rows(x, at.format), weight, finish, Ints(dims.begin(), dims.end() - 1),
                                 x.dtype());
  }
  Value y = linear(cast(x, DType::f32), dequantize(weight), finish.bias, finish.act);
  return apply_finish(y, finish, x.dtype());
}

Value decompose_quantized_linear_rows(Inputs in, const Attrs& attrs) {
  QuantizedInputs at(attrs);
  Ints dims = attrs.ints("rows");
  int64_t m = 1, k = decoded_shape(at.format, in[at.codes].shape())[1];
  for (int64_t d : dims) m *= d;
  QuantizedFinish finish = finish_of(in, at, attrs);
  QuantizedWeight weight = weight_of(in, at);
  if (has_tiled_scales(weight.scale.shape(), at.format)) {
    weight.scale = untile_scales(weight.scale, weight.codes.shape()[0], k / kNvfp4Block);
    weight.scale_2 = reshape(slice(weight.scale_2, 0, 0, 1), {});
  }
  Value y = linear(dequantize_rows(in[0], at.format, m, k), dequantize(weight), finish.bias, finish.act);
  dims.push_back(y.shape()[-1]);
  return apply_finish(reshape(y, Shape(std::span<const int64_t>(dims))), finish,
                      static_cast<DType>(attrs.integer("dtype")));
}

std::vector<Value> product_inputs(Value x, const QuantizedWeight& weight, const QuantizedFinish& finish) {
  std::vector<Value> inputs{x};
  for (const Value& part : {weight.codes, weight.scale, weight.scale_2, finish.bias, finish.gate, finish.residual}) {
    if (part.defined()) inputs.push_back(part);
  }
  return inputs;
}

Attrs product_attrs(const QuantizedWeight& weight, const QuantizedFinish& finish) {
  return {{"format", name_of(weight.format)},
          {"act", finish.act},
          {"bias", int64_t{finish.bias.defined()}},
          {"gate", int64_t{finish.gate.defined()}},
          {"residual", int64_t{finish.residual.defined()}}};
}

}  // namespace

const OpDef kDequantize{"dequantize", infer_dequantize, no_gradient};
const OpDef kQuantizedLinear{"quantized_linear", infer_quantized_linear, nullptr, decompose_quantized_linear};
const OpDef kQuantizeRows{"quantize_rows", infer_quantize_rows, no_gradient};
const OpDef kDequantizeRows{"dequantize_rows", infer_dequantize_rows, no_gradient};
const OpDef kQuantizedLinearRows{"quantized_linear_rows", infer_quantized_linear_rows, nullptr,
                                 decompose_quantized_linear_rows};

QuantizedInputs::QuantizedInputs(const Attrs& attrs) : format(format_of(attrs)) {
  if (is_nvfp4(format)) scale_2 = count++;
  if (attrs.integer("bias")) bias = count++;
  if (attrs.integer("gate")) gate = count++;
  if (attrs.integer("residual")) residual = count++;
}

Value dequantize(const QuantizedWeight& w) {
  std::vector<Value> inputs{w.codes, w.scale};
  if (w.scale_2.defined()) inputs.push_back(w.scale_2);
  return apply(kDequantize, inputs, {{"format", name_of(w.format)}});
}

Value quantized_linear(Value x, const QuantizedWeight& weight, const QuantizedFinish& finish) {
  return apply(kQuantizedLinear, product_inputs(x, weight, finish), product_attrs(weight, finish));
}

Value quantize_rows(Value x, QuantFormat format) { return apply(kQuantizeRows, {x}, {{"format", name_of(format)}}); }

bool has_tiled_scales(const Shape& scale, QuantFormat format) {
  return format == QuantFormat::nvfp4_both && scale.rank() == 1;
}

Value tile_scales(Value scale) {
  int64_t rows = ceil_div(scale.shape()[0], kScaleTileRows), columns = ceil_div(scale.shape()[1], 4);
  Value whole = pad(pad(scale, 0, 0, rows * kScaleTileRows - scale.shape()[0]), 1, 0, columns * 4 - scale.shape()[1]);
  Value tiles = permute(reshape(whole, {rows, 4, 32, columns, 4}), {0, 3, 2, 1, 4});
  return reshape(tiles, {tiles.shape().numel()});
}

Value untile_scales(Value tiled, int64_t n, int64_t blocks) {
  int64_t rows = ceil_div(n, kScaleTileRows), columns = ceil_div(blocks, kScaleTileBlocks);
  Value whole = permute(reshape(tiled, {rows, columns, 32, 4, 4}), {0, 3, 2, 1, 4});
  return slice(slice(reshape(whole, {rows * kScaleTileRows, columns * 4}), 0, 0, n), 1, 0, blocks);
}

Graph tile_weight_scales(const Graph& graph) {
  std::map<NodeId, Value> tiled;  // by the scale in the new graph
  return rewrite(graph, [&](Graph& target, const Node& node, Inputs in) {
    if (node.op != &kQuantizedLinearRows) return Value();
    QuantizedInputs at(node.attrs);
    const Shape& scale = in[at.scale].shape();
    if (at.format != QuantFormat::nvfp4_both || has_tiled_scales(scale, at.format)) return Value();
    Value& made = tiled[in[at.scale].id()];
    if (!made.defined()) made = tile_scales(in[at.scale]);
    std::vector<Value> now(in.begin(), in.end());
    now[at.scale] = made;
    now[at.scale_2] = broadcast_to(in[at.scale_2], {scale[0]});
    return target.append(kQuantizedLinearRows, now, node.attrs);
  });
}

Value dequantize_rows(Value rows, QuantFormat format, int64_t m, int64_t k) {
  return apply(kDequantizeRows, {rows}, {{"format", name_of(format)}, {"m", m}, {"k", k}});
}

Value quantized_linear_rows(Value rows, const QuantizedWeight& weight, const QuantizedFinish& finish,
                            const Ints& leading, DType dtype) {
  Attrs attrs = product_attrs(weight, finish);
  attrs.set("rows", leading);
  attrs.set("dtype", static_cast<int64_t>(dtype));
  return apply(kQuantizedLinearRows, product_inputs(rows, weight, finish), attrs);
}

Graph use_quantized_products(const Graph& graph) {
  return rewrite(graph, [](Graph& target, const Node& node, Inputs in) {
    bool sum = node.op == &kLinearAdd;
    if (node.op != &kLinear && !sum) return Value();
    const Node& weight = target.node(in[sum ? 2 : 1].id());
    if (weight.op != &kDequantize) return Value();
    auto part = [&](size_t i) { return i < weight.inputs.size() ? Value(&target, weight.inputs[i]) : Value(); };
    QuantizedWeight parts{format_of(weight.attrs), part(0), part(1), part(2)};
    if (!sum) {
      return quantized_linear(in[0], parts, {in.size() == 3 ? in[2] : Value(), node.attrs.text("act")});
    }
    QuantizedFinish finish{.residual = in[0]};
    if (node.attrs.integer("gate")) finish.gate = in[3];
    if (node.attrs.integer("bias")) finish.bias = in.back();
    return quantized_linear(in[1], parts, finish);
  });
}

Graph share_quantized_rows(const Graph& graph) {
  std::map<std::pair<NodeId, QuantFormat>, Value> made;  // by x in the new graph
  return rewrite(graph, [&](Graph&, const Node& node, Inputs in) {
    if (node.op != &kQuantizedLinear) return Value();
    QuantizedInputs at(node.attrs);
    if (!quantizes_rows(at.format)) return Value();
    Value& rows = made[{in[0].id(), at.format}];
    if (!rows.defined()) rows = quantize_rows(in[0], at.format);
    std::span<const int64_t> dims = in[0].shape().dims();
    return quantized_linear_rows(rows, weight_of(in, at), finish_of(in, at, node.attrs),
                                 Ints(dims.begin(), dims.end() - 1), in[0].dtype());
  });
}

}  // namespace kinora
