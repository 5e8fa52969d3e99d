// Reverse-mode differentiation: gradients are more graph. It lives beside the ops because it adds gradients up.
#pragma once

#include <vector>

#include "graph/graph.h"

namespace kinora {

// A copy of the graph in which every op without a derivative is replaced by its decomposition, recursively.
// Leaves and outputs keep their names.
Graph expand_for_grad(const Graph& graph);

// Appends to the graph the gradient of `loss` with respect to each of `wrt`; `seed` is the gradient of `loss` itself
// (ones when undefined). A value that `loss` does not depend on gets an undefined Value. The graph must have been
// through expand_for_grad; otherwise Error(internal).
std::vector<Value> gradients(Value loss, std::span<const Value> wrt, Value seed = {});

}  // namespace kinora
