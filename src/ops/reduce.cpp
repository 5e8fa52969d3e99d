#include "ops/reduce.h"

#include "ops/elementwise.h"
#include "ops/shaping.h"
#include "ops/table.h"

namespace kinora {
namespace {

TensorSpec infer_reduce(std::span<const TensorSpec> in, const Attrs& attrs) {
  expect_inputs(in, 1);
  expect_float(in[0]);
  Shape shape = in[0].shape;
  for (int64_t axis : attrs.ints("axes")) {
    if (axis < 0 || axis >= shape.rank())
      fail(ErrorKind::internal, "axis " + std::to_string(axis) + " is out of range");
    shape = shape.with(static_cast<int>(axis), 1);
  }
  return {shape, in[0].dtype};
}

std::vector<Value> grad_sum(std::span<const Value> in, const Attrs&, Value, Value g) {
  return {broadcast_to(g, in[0].shape())};
}

std::vector<Value> grad_max(std::span<const Value>, const Attrs&, Value, Value) { return {Value()}; }

Ints positive(const Value& x, Ints axes) {
  for (int64_t& axis : axes) axis += axis < 0 ? x.shape().rank() : 0;
  return axes;
}

}  // namespace

const OpDef kSum{"sum", infer_reduce, grad_sum};
const OpDef kMax{"max", infer_reduce, grad_max};

Value sum(Value x, Ints axes) { return apply(kSum, {x}, {{"axes", positive(x, std::move(axes))}}); }
Value max(Value x, Ints axes) { return apply(kMax, {x}, {{"axes", positive(x, std::move(axes))}}); }

Value mean(Value x, Ints axes) {
  Value total = sum(x, std::move(axes));
  double count = static_cast<double>(x.shape().numel()) / static_cast<double>(total.shape().numel());
  return affine(total, 1 / count, 0);
}

Value sum_to(Value x, const Shape& shape) {
  if (x.shape() == shape) return x;
  int extra = x.shape().rank() - shape.rank();
  Ints axes;
  for (int i = 0; i < x.shape().rank(); ++i) {
    if (i < extra || (shape[i - extra] == 1 && x.shape()[i] != 1)) axes.push_back(i);
  }
  Value reduced = axes.empty() ? x : sum(x, axes);
  return reshape(reduced, shape);
}

}  // namespace kinora
