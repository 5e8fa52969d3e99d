// Rewrites around quantized products, for backends whose launches and memory passes cost more than arithmetic, and the
// ops that they need: what computes rows of activations gives them as quantized rows at once.
#pragma once

#include "core/quantize.h"
#include "graph/graph.h"

namespace kinora {

// quantize_rows(layer_norm(x, eps, scale, shift)), with the norm's result rounded to x's type in between. x [.., k] ->
// u8 as of quantize_rows. Attrs: "eps", "format".
Value layer_norm_rows(Value x, QuantFormat format, double eps, Value scale = {}, Value shift = {});
// quantize_rows(rms_norm(x, weight, bias, eps, offset)) likewise. Attrs: "eps", "offset", "format", and perhaps "to",
// as of rms_norm.
Value rms_norm_rows(Value x, QuantFormat format, Value weight, Value bias, double eps, double offset = 0);
// quantize_rows(act_mul(a, b, act)) likewise. Attrs: "act", "format".
Value act_mul_rows(Value a, Value b, QuantFormat format, const std::string& act);

// Quantized products with parts of one format that read the same x or the same rows become one, with their codes,
// scales and biases joined, and slices of its result. Not nvfp4, whose second scale is of the whole weight.
Graph merge_quantized_linears(const Graph& graph);
// quantize_rows of a norm or a gated activation that nothing else reads -> the ops above.
Graph fuse_quantized_rows(const Graph& graph);

extern const OpDef kLayerNormRows, kRmsNormRows, kActMulRows;

}  // namespace kinora
