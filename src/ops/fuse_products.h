// Rewrites that make one wide product of several, for backends whose launches cost more than arithmetic. Each returns a
// graph with the same outputs, to the rounding of one step.
#pragma once

#include "graph/graph.h"

namespace kinora {

// Linears that read the same x become one, with their weights joined, and slices of its result.
Graph merge_linears(const Graph& graph);
// Quantized products with parts of one format that read the same x or the same rows become one, with their codes,
// scales and biases joined, and slices of its result. Not nvfp4, whose second scale is of the whole weight.
Graph merge_quantized_linears(const Graph& graph);
// A concat of neighbouring slices of one tensor, in order and with nothing left out, is that tensor.
Graph drop_rejoined_slices(const Graph& graph);
// A concat of the same columns of several linears, one behind the other in memory, is those columns of the linears'
// concat: that one the linears can write themselves, and nothing is copied.
Graph join_before_slicing(const Graph& graph);

}  // namespace kinora
