// Rewrites around quantized products, for backends whose launches and memory passes cost more than arithmetic, and the
// ops that they need: what computes rows of activations gives them as quantized rows at once.
#pragma once

#include <optional>

#include "core/quantize.h"
#include "graph/graph.h"
#include "ops/norm.h"

namespace kinora {

// quantize_rows(layer_norm(x, eps, scale, shift)), with the norm's result rounded to x's type in between. x [.., k] ->
// u8 as of quantize_rows. Attrs: "eps", "format".
Value layer_norm_rows(Value x, QuantFormat format, double eps, Value scale = {}, Value shift = {});
// quantize_rows(rms_norm(x, weight, bias, eps, offset)) likewise. Attrs: "eps", "offset", "format", and perhaps "to",
// as of rms_norm.
Value rms_norm_rows(Value x, QuantFormat format, Value weight, Value bias, double eps, double offset = 0);
// quantize_rows(act_mul(a, b, act)) likewise. Attrs: "act", "format".
Value act_mul_rows(Value a, Value b, QuantFormat format, const std::string& act);

// The sum a·b + c [.., k] of mul_add, which has c's shape, and quantize_rows of it or, with `norm`, of its layer_norm,
// in one piece of bytes; see sum_of and rows_of. Attrs: "format", "norm" (0 or 1), "eps".
struct RowNorm {
  double eps = 0;
  Value scale, shift;  // as of layer_norm; both or none
};
Value mul_add_rows(Value a, Value b, Value c, QuantFormat format, const std::optional<RowNorm>& norm = {});
// The second part of its result; sum_of (ops/norm.h) is the first.
Value rows_of(Value packed, const Shape& shape, DType dtype);

// quantize_rows of a norm or a gated activation that nothing else reads -> the ops above.
Graph fuse_quantized_rows(const Graph& graph);
// mul_add whose result becomes quantized rows, perhaps through layer_norm_rows, or goes through a layer_norm, before
// anything else reads it -> mul_add_rows or mul_add_norm. rms_norm_add that goes through an rms_norm -> likewise
// rms_norm_add_norm.
Graph fuse_sums_and_rows(const Graph& graph);

extern const OpDef kLayerNormRows, kRmsNormRows, kActMulRows, kMulAddRows;

}  // namespace kinora
