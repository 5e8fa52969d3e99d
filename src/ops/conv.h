// Convolution on channels-last pictures and films.
#pragma once

#include <array>

#include "graph/graph.h"

namespace kinora {

struct Conv2dOptions {
  int64_t stride = 1;
  int64_t padding = 0;  // zeros on all four sides
  int64_t groups = 1;
  std::string act = "none";
  std::string weight_layout = "oihw";  // or "ohwi"
};

// x [batch, height, width, in], weight [out, in/groups, kh, kw] (the checkpoint's order) or with weight_layout "ohwi"
// [out, kh, kw, in/groups], bias [out] or undefined
// -> act(conv) [batch, (height + 2p - kh)/s + 1, (width + 2p - kw)/s + 1, out] in x's dtype.
Value conv2d(Value x, Value weight, Value bias, const Conv2dOptions& options);

struct Conv3dOptions {
  std::array<int64_t, 3> stride{1, 1, 1};   // frames, height, width
  std::array<int64_t, 3> padding{0, 0, 0};  // zeros before and after each axis, fewer than the kernel is long
  int64_t groups = 1;
  std::string act = "none";
  std::string weight_layout = "oithw";  // or "othwi"
};

// x [batch, frames, height, width, in], weight [out, in/groups, kt, kh, kw] (the checkpoint's order) or with
// weight_layout "othwi" [out, kt, kh, kw, in/groups], bias [out] or undefined
// -> act(conv) [batch, frames', height', width', out] in x's dtype, each extent (n + 2p - k)/s + 1.
// A causal convolution has no padding here: `pad_edge` comes before it.
Value conv3d(Value x, Value weight, Value bias, const Conv3dOptions& options);

// The middle of Sana's and DC-AE's feed-forward (GLUMBConv): a depthwise convolution of act(x) (stride 1, padding
// (k - 1)/2) and the gate after it. x [batch, height, width, 2r], weight [2r, 1, k, k] with odd k, bias [2r] or
// undefined, act as of activation(); of the convolved channels, the first half · silu(second half)
// -> [batch, height, width, r] in x's dtype.
Value depthwise_glu(Value x, Value weight, Value bias, const std::string& act = "none");

// What four 2x2 filters over a picture leave to do when they stand for one 3x3 filter over the picture at twice its
// size: x [batch, h + 1, w + 1, 4C] -> [batch, 2h, 2w, C], where pixel (2i + r, 2j + s) is x[i + r, j + s] of channels
// (2r + s)C and on. With `shortcut` [batch, h, w, kC], k 1 or 2, of x's dtype, DC-AE's upsampling shortcut is added:
// the shuffled pixels (pixel_shuffle) of its channels, each repeated 4 / k times; pixel (2i + r, 2j + s), channel c
// gets shortcut[i, j, (4c + 2r + s)k / 4].
Value interleave_phases(Value x, Value shortcut = {});

// The same of a film and eight 2x2x2 filters, for one 3x3x3 filter over the film at twice its size and number of
// frames, except that the first frame stays one: x [batch, t, h + 1, w + 1, 8C] -> [batch, 2t - 1, 2h, 2w, C], where
// pixel (2f + q - 1, 2i + r, 2j + s) is x[f, i + r, j + s] of channels (4q + 2r + s)C and on.
Value interleave_phases3d(Value x);

extern const OpDef kConv2d, kConv3d, kDepthwiseGlu, kInterleavePhases, kInterleavePhases3d;

}  // namespace kinora
