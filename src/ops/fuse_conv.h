// Rewrites of convolutions into the forms that a GPU computes fast; passes of a backend.
#pragma once

#include "graph/graph.h"

namespace kinora {

// Gives every conv2d of one group and more than one kernel position its weight as "ohwi", by a permute that depends on
// the weight alone; weight and bias become x's dtype.
Graph channels_last_weights(const Graph& graph);

// glu(conv2d(x)) with one 3x3 kernel a channel, stride 1, padding 1 becomes depthwise_glu(x), where nothing else reads
// the convolution. When x is a linear's result, perhaps reshaped, that nothing else reads, the linear's silu moves into
// the new op.
Graph fuse_depthwise_glu(const Graph& graph);

}  // namespace kinora
