#include "ops/matmul.h"

#include "ops/elementwise.h"
#include "ops/shaping.h"
#include "ops/table.h"

namespace kinora {
namespace {

using Inputs = std::span<const Value>;
using Specs = std::span<const TensorSpec>;

TensorSpec infer_matmul(Specs in, const Attrs& attrs) {
  expect_inputs(in, 2);
  expect_float(in[0]);
  const Shape &a = in[0].shape, &b = in[1].shape;
  if (in[0].dtype != in[1].dtype || a.rank() < 2 || b.rank() < 2) fail(ErrorKind::internal, "two matrices are needed");
  bool ta = attrs.integer("transpose_a"), tb = attrs.integer("transpose_b");
  int64_t m = ta ? a[-1] : a[-2], k = ta ? a[-2] : a[-1], k2 = tb ? b[-1] : b[-2], n = tb ? b[-2] : b[-1];
  bool batches =
      b.rank() == 2 || (a.rank() == b.rank() && std::equal(a.dims().begin(), a.dims().end() - 2, b.dims().begin()));
  if (k != k2 || !batches) fail(ErrorKind::internal, "the inner extents or the batches differ");
  return {a.with(-2, m).with(-1, n), in[0].dtype};
}

// y = op(a)·op(b); the four cases are dy·bᵀ and aᵀ·dy with the transposes moved to where they are stored.
std::vector<Value> grad_matmul(Inputs in, const Attrs& attrs, Value, Value g) {
  Value a = in[0], b = in[1];
  bool ta = attrs.integer("transpose_a"), tb = attrs.integer("transpose_b");
  Value da = ta ? matmul(tb ? transpose_last(b) : b, g, false, true) : matmul(g, b, false, !tb);
  Value db;
  if (b.shape().rank() == 2 && a.shape().rank() > 2) {
    Value a2 = ta ? transpose_last(a) : a;
    a2 = reshape(a2, {a2.shape().product(0, a2.shape().rank() - 1), a2.shape()[-1]});
    Value g2 = reshape(g, {g.shape().product(0, g.shape().rank() - 1), g.shape()[-1]});
    db = tb ? matmul(g2, a2, true, false) : matmul(a2, g2, true, false);
  } else if (tb) {
    db = ta ? matmul(g, a, true, true) : matmul(g, a, true, false);
  } else {
    db = matmul(a, g, !ta, false);
  }
  return {da, db};
}

TensorSpec infer_linear(Specs in, const Attrs&) {
  expect_inputs(in, 2, 3);
  for (const TensorSpec& spec : in) expect_float(spec);
  const Shape &x = in[0].shape, &w = in[1].shape;
  if (w.rank() != 2 || x.rank() < 1 || x[-1] != w[1])
    fail(ErrorKind::internal, "x [.., K] and weight [N, K] are needed");
  if (in.size() == 3) expect_shape("bias", in[2].shape, {w[0]});
  return {x.with(-1, w[0]), in[0].dtype};
}

Value decompose_linear(Inputs in, const Attrs& attrs) {
  Value x = in[0], w = cast(in[1], x.dtype());
  Value rows = reshape(x, {x.shape().product(0, x.shape().rank() - 1), x.shape()[-1]});
  Value y = reshape(matmul(rows, w, false, true), x.shape().with(-1, w.shape()[0]));
  if (in.size() == 3) y = y + cast(in[2], x.dtype());
  return activation(y, attrs.text("act"));
}

// Inputs: residual, x, weight, then gate and bias where the attributes say so. The residual comes first so that the
// result may take its place.
TensorSpec infer_linear_add(Specs in, const Attrs& attrs) {
  bool gated = attrs.integer("gate"), biased = attrs.integer("bias");
  expect_inputs(in, 3 + size_t{gated} + size_t{biased});
  for (const TensorSpec& spec : in) expect_float(spec);
  std::vector<TensorSpec> product{in[1], in[2]};
  if (biased) product.push_back(in.back());
  TensorSpec out = infer_linear(product, attrs);
  expect_shape("residual", in[0].shape, out.shape);
  if (in[0].dtype != out.dtype && in[0].dtype != DType::f32)
    fail(ErrorKind::internal, "the residual is neither of x's type nor float32");
  if (gated) {
    const Shape& gate = in[3].shape;
    bool fits = gate.rank() >= 1 && gate[-1] == out.shape[-1] && broadcast(gate, out.shape) == out.shape;
    if (!fits || in[3].dtype != out.dtype) fail(ErrorKind::internal, "the gate does not fit " + out.shape.str());
  }
  return in[0];
}

Value decompose_linear_add(Inputs in, const Attrs& attrs) {
  bool gated = attrs.integer("gate"), biased = attrs.integer("bias");
  Value y = linear(cast(in[1], DType::f32), in[2], biased ? in.back() : Value());
  if (gated) y = cast(in[3], DType::f32) * y;
  return cast(cast(in[0], DType::f32) + y, in[0].dtype());
}

TensorSpec infer_gather(Specs in, const Attrs& attrs) {
  expect_inputs(in, 2);
  const Shape &table = in[0].shape, &ids = in[1].shape;
  if (table.rank() != 2 || in[1].dtype != DType::i32) fail(ErrorKind::internal, "table [V, D] and i32 ids are needed");
  Ints dims(ids.dims().begin(), ids.dims().end());
  dims.push_back(table[1]);
  return {Shape(std::span<const int64_t>(dims)), static_cast<DType>(attrs.integer("dtype"))};
}

std::vector<Value> grad_gather(Inputs in, const Attrs&, Value, Value g) {
  return {cast(scatter_rows(g, in[1], in[0].shape()[0]), in[0].dtype()), Value()};
}

TensorSpec infer_scatter_rows(Specs in, const Attrs& attrs) {
  expect_inputs(in, 2);
  expect_float(in[0]);
  if (in[1].dtype != DType::i32 || in[0].shape.rank() != in[1].shape.rank() + 1) {
    fail(ErrorKind::internal, "g [.., D] and i32 ids [..] are needed");
  }
  return {{attrs.integer("rows"), in[0].shape[-1]}, in[0].dtype};
}

std::vector<Value> grad_scatter_rows(Inputs in, const Attrs&, Value, Value g) {
  return {gather(g, in[1], in[0].dtype()), Value()};
}

}  // namespace

const OpDef kMatmul{"matmul", infer_matmul, grad_matmul};
const OpDef kLinear{"linear", infer_linear, nullptr, decompose_linear};
const OpDef kLinearAdd{"linear_add", infer_linear_add, nullptr, decompose_linear_add};
const OpDef kGather{"gather", infer_gather, grad_gather};
const OpDef kScatterRows{"scatter_rows", infer_scatter_rows, grad_scatter_rows};

Value matmul(Value a, Value b, bool transpose_a, bool transpose_b) {
  return apply(kMatmul, {a, b}, {{"transpose_a", int64_t{transpose_a}}, {"transpose_b", int64_t{transpose_b}}});
}
Value linear(Value x, Value weight, Value bias, const std::string& act) {
  Attrs attrs{{"act", act}};
  return bias.defined() ? apply(kLinear, {x, weight, bias}, attrs) : apply(kLinear, {x, weight}, attrs);
}
Value linear_add(Value x, Value weight, Value bias, Value residual, Value gate) {
  std::vector<Value> inputs{residual, x, weight};
  if (gate.defined()) inputs.push_back(gate);
  if (bias.defined()) inputs.push_back(bias);
  return apply(kLinearAdd, inputs, {{"gate", int64_t{gate.defined()}}, {"bias", int64_t{bias.defined()}}});
}

Value gather(Value table, Value ids, DType dtype) {
  return apply(kGather, {table, ids}, {{"dtype", static_cast<int64_t>(dtype)}});
}
Value scatter_rows(Value g, Value ids, int64_t rows) { return apply(kScatterRows, {g, ids}, {{"rows", rows}}); }

}  // namespace kinora
