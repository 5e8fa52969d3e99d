// Reductions, accumulated in float32 in an order fixed by the shape. Results are of x's dtype.
#pragma once

#include "graph/graph.h"

namespace kinora {

Value sum(Value x, Ints axes);  // keeps the reduced axes, with extent 1
Value max(Value x, Ints axes);  // likewise; treated as a constant by differentiation (its uses here cancel)
Value mean(Value x, Ints axes);
// Sums a broadcast result back to `shape`: the derivative of broadcasting.
Value sum_to(Value x, const Shape& shape);

extern const OpDef kSum, kMax;

}  // namespace kinora
