// What products with weights read: outputs of a graph in place of its own, so that statistics are computed by the same
// backend, on any device, as what they are of.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kinora {

// An input x [rows, length] of linears, which several may share.
struct ObservedInput {
  std::string output;  // of the graph: Σ over rows of x·xᵀ, f32 [length, length], or of x², [length]
  int64_t rows, length;
  bool full;                         // the former
  std::vector<std::string> weights;  // names of those linears' parameters, each with its first reader alone
};

struct ObservedGraph {
  Graph graph;  // inputs as before; outputs of `inputs` alone
  std::vector<ObservedInput> inputs;
};

// Of the linears (linear, linear_add) whose parameter has a name that is `wanted`, or is some rows of such a weight
// ("name[begin:end]"). Inputs that are longer than `most_full` are observed one by one, without their products.
ObservedGraph observe_products(const Graph& graph, const std::function<bool(const std::string& weight)>& wanted,
                               int64_t most_full);

}  // namespace kinora
