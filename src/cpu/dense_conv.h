// Dense convolution of pictures and films through oneDNN.
#pragma once

#include <algorithm>

#include "graph/executable.h"

namespace kinora::cpu {

constexpr int64_t kConvPixels = 1024;  // output pixels that are computed together, about

// One axis of a convolution.
struct Axis {
  int64_t in, out, kernel, stride, padding;

  // What output elements [first, first + count) read: elements [begin, begin + size), with zeros before and after.
  struct Window {
    int64_t begin, size, before, after;
  };
  Window window(int64_t first, int64_t count) const {
    int64_t from = first * stride - padding, to = (first + count - 1) * stride - padding + kernel;
    int64_t begin = std::max<int64_t>(0, from), end = std::min(in, to);
    return {begin, end - begin, begin - from, to - end};
  }
};

// A convolution of films; a picture is a film of one frame.
struct ConvGeometry {
  Axis t, h, w;
  int64_t batch, in, out, groups;  // in, out: channels

  explicit ConvGeometry(const StepSpec& spec);  // of a conv2d or conv3d node
  int64_t taps() const { return t.kernel * h.kernel * w.kernel; }
  int64_t frames() const { return batch * t.out; }  // output frames, all batch items
  bool depthwise() const { return groups == in && groups == out; }
};

// The step of a conv2d or conv3d node with one group, whose weight is in the checkpoint's order: in tasks of an output
// frame, a panel of output channels and a group of rows.
Step make_dense_conv(const StepSpec& spec);

}  // namespace kinora::cpu
