// Rewrites that make fewer, larger steps, for backends whose launches and memory passes cost more than arithmetic.
// Each returns a graph with the same outputs, to the rounding of one step.
#pragma once

#include "graph/graph.h"

namespace kinora {

// A gated linear_add becomes mul_add(gate, linear, residual).
Graph split_gates(const Graph& graph);
// Weights of products and norms in another float type than their x get a cast, which is folded once; so do the biases
// of quantized products.
Graph match_weight_types(const Graph& graph);
// rope(rms_norm(x)) -> rms_norm_rope.
Graph fuse_norm_rope(const Graph& graph);
// Ropes with the same tables of neighbouring columns of one tensor, for attention, become one, and slices of its heads.
Graph merge_ropes(const Graph& graph);
// act(a) · b -> act_mul, a · b + c -> mul_add, linear + c -> linear_add, rms_norm + c -> rms_norm_add; a sum with a
// linear's result in float32 -> linear_add, a norm's result in 16 bits -> rms_norm that writes them, relu(rms_norm) ->
// rms_norm with "act".
Graph fuse_pointwise(const Graph& graph);

}  // namespace kinora
