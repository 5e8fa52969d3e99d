// Cuts a graph that runs many times in two: what stays the same between runs, computed once, and the rest.
#pragma once

#include <set>
#include <string>

#include "graph/graph.h"

namespace kinora {

struct Split {
  Graph before;  // its outputs, "held.0", …, are inputs of `after`
  Graph after;   // the outputs of the whole
};

// `varying`: the inputs that differ between runs. Everything that depends on other inputs and on none of these goes
// into `before`; what depends on weights alone stays where it is used. A slice, reshape or part at the cut is
// made in `after`, where it may be a view. Both halves may name the same inputs.
Split split(const Graph& graph, const std::set<std::string>& varying);

}  // namespace kinora
