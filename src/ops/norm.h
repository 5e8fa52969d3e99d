// Normalisation over the last axis; statistics in float32.
#pragma once

#include "graph/graph.h"

namespace kinora {

// (x - mean) / sqrt(var + eps), no weights; with scale and shift (broadcast against x): · (1 + scale) + shift.
Value layer_norm(Value x, double eps, Value scale = {}, Value shift = {});

// x / sqrt(mean(x²) + eps) · (offset + weight) + bias; weight and bias [C] of any float type, or undefined.
// Gemma's norm has offset 1.
Value rms_norm(Value x, Value weight, Value bias, double eps, double offset = 0);

// residual + rms_norm(x, …), rounded once; residual is like x.
Value rms_norm_add(Value x, Value residual, Value weight, Value bias, double eps, double offset = 0);

extern const OpDef kLayerNorm, kRmsNorm, kRmsNormAdd;

}  // namespace kinora
