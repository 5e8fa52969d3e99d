// Products. A weight may be stored in another float type than the activations; it is read in its stored type.
#pragma once

#include "graph/graph.h"

namespace kinora {

// [.., M, K] x [.., K, N] -> [.., M, N], optionally with a or b stored transposed. Leading axes are equal, or b has
// rank 2. Both have the same dtype, which is the result's.
Value matmul(Value a, Value b, bool transpose_a = false, bool transpose_b = false);

// x [.., K], weight [N, K], bias [N] or undefined -> act(x·weightᵀ + bias) [.., N] in x's dtype.
Value linear(Value x, Value weight, Value bias = {}, const std::string& act = "none");

// residual + gate·(x·weightᵀ + bias), rounded once: how a layer's result joins the stream beside it. residual has the
// result's shape and dtype: x's, or float32 beside a 16-bit x; gate has x's dtype and broadcasts against it with a full
// last axis, or is undefined (one); bias [N] or undefined.
Value linear_add(Value x, Value weight, Value bias, Value residual, Value gate = {});

// table [V, D], ids i32 [..] in [0, V) -> [.., D] of `dtype`. An id out of range is an Error(internal) at run time.
Value gather(Value table, Value ids, DType dtype = DType::f32);
// The derivative of gather: sums rows of g [.., D] into [rows, D] by ids, in the order of ids.
Value scatter_rows(Value g, Value ids, int64_t rows);

extern const OpDef kMatmul, kLinear, kLinearAdd, kGather, kScatterRows;

}  // namespace kinora
