// The list of every op, and the checks that their shape rules share.
#pragma once

#include <span>

#include "graph/graph.h"

namespace kinora {

// Every op there is, leaves excepted; `find_op` throws Error(internal) for an unknown name.
std::span<const OpDef* const> op_table();
const OpDef& find_op(std::string_view name);

void expect_inputs(std::span<const TensorSpec> inputs, size_t at_least, size_t at_most = 0);
void expect_float(const TensorSpec& spec);
// Throws Error(internal) "<what> must be <expected>, not <got>" unless equal.
void expect_shape(std::string_view what, const Shape& got, const Shape& expected);

}  // namespace kinora
