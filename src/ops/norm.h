// Normalisation over the last axis, or over groups of channels; statistics in float32. Results are of x's shape and
// dtype where nothing else is said.
#pragma once

#include "graph/graph.h"

namespace kinora {

// (x - mean) / sqrt(var + eps), no weights; with scale and shift (broadcast against x): · (1 + scale) + shift.
Value layer_norm(Value x, double eps, Value scale = {}, Value shift = {});

// x / sqrt(mean(x²) + eps) · (offset + weight) + bias; weight and bias [C] of any float type, or undefined.
// Gemma's norm has offset 1. Attributes that a node may have besides, from rewrites: "to", the result's type in place
// of x's; "act", as of activation(), which comes before the result is rounded.
Value rms_norm(Value x, Value weight, Value bias, double eps, double offset = 0);

// torch.nn.GroupNorm on channels-last x [batch, .., C]: each of `groups` runs of neighbouring channels is normalised by
// its mean and variance over all positions of one batch item; then · weight + bias ([C], any float type), then `act`.
Value group_norm(Value x, Value weight, Value bias, int64_t groups, double eps, const std::string& act = "none");

// pad_edge(group_norm(x, …), before, after), with none around the batch and the channels.
Value group_norm_pad(Value x, Value weight, Value bias, int64_t groups, double eps, const std::string& act, Ints before,
                     Ints after);

// residual + rms_norm(x, …), rounded once; residual is like x.
Value rms_norm_add(Value x, Value residual, Value weight, Value bias, double eps, double offset = 0);

// The sum a·b + c [.., C] of mul_add, which has c's shape, and its layer_norm, in one piece of bytes; sum_of and
// normed_of are the two. The norm reads the sum as its type holds it. Attrs: "eps".
Value mul_add_norm(Value a, Value b, Value c, double eps, Value scale = {}, Value shift = {});
// rms_norm_add(x, residual, first) and the rms_norm of that sum with the second's weight, packed likewise.
struct RmsWeight {
  Value weight;
  double eps = 0, offset = 0;
};
Value rms_norm_add_norm(Value x, Value residual, const RmsWeight& first, const RmsWeight& second);
Value sum_of(Value packed, const Shape& shape, DType dtype);
Value normed_of(Value packed, const Shape& shape, DType dtype);
// Where what is made of the sum begins: after it, at a multiple of 256 bytes.
inline int64_t bytes_before_made(const TensorSpec& sum) {
  return (static_cast<int64_t>(sum.bytes()) + 255) / 256 * 256;
}

extern const OpDef kLayerNorm, kRmsNorm, kRmsNormAdd, kGroupNorm, kGroupNormPad, kMulAddNorm, kRmsNormAddNorm;

}  // namespace kinora
