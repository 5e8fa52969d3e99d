// Rewrites of convolutions into the forms that a GPU computes fast; passes of a backend.
#pragma once

#include "graph/graph.h"

namespace kinora {

// Gives every conv2d and conv3d of one group and more than one kernel position its weight as "ohwi" or "othwi", by a
// permute that depends on the weight alone; weight and bias become x's dtype. Channels of films in 16-bit types are
// filled up with zeros to multiples of eight, the least that tensor cores read.
Graph channels_last_weights(const Graph& graph);

// glu(conv2d(x)) with one 3x3 kernel a channel, stride 1, padding 1 becomes depthwise_glu(x), where nothing else reads
// the convolution. When the x of such an op, made here or before, is a linear's result, perhaps reshaped, that nothing
// else reads, the linear's silu moves into the new op.
Graph fuse_depthwise_glu(const Graph& graph);

// conv2d(upsample_nearest2(x)) with 3x3 filters becomes four 2x2 filters over x, whose taps are sums of the three: 4/9
// of the products, and no upsampled picture.
Graph fold_upsampling(const Graph& graph);

// interleave_phases(x) + DC-AE's upsampling shortcut, of channels repeated four times or twice, in either order, where
// nothing else reads the phases, becomes one op that reads what the shortcut repeats.
Graph join_phases_and_shortcut(const Graph& graph);

// a + upsample_nearest2(x), or another repetition of x's elements, reads x in place of a repeated copy.
Graph add_without_repeating(const Graph& graph);

}  // namespace kinora
