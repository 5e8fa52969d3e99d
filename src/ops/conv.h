// Convolution on channels-last pictures.
#pragma once

#include "graph/graph.h"

namespace kinora {

struct Conv2dOptions {
  int64_t stride = 1;
  int64_t padding = 0;  // zeros on all four sides
  int64_t groups = 1;
  std::string act = "none";
};

// x [batch, height, width, in], weight [out, in/groups, kh, kw] (the checkpoint's order), bias [out] or undefined
// -> act(conv) [batch, (height + 2p - kh)/s + 1, (width + 2p - kw)/s + 1, out] in x's dtype.
Value conv2d(Value x, Value weight, Value bias, const Conv2dOptions& options);

// A depthwise convolution (stride 1, padding (k - 1)/2, bias [C] or undefined) and the gate after it: of the convolved
// channels [batch, height, width, C], the first half · silu(second half) [batch, height, width, C/2].
Value depthwise_glu(Value x, Value weight, Value bias);

extern const OpDef kConv2d, kDepthwiseGlu;

}  // namespace kinora
