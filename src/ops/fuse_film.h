// Rewrites of film autoencoders into the forms that a GPU computes fast; passes of a backend.
#pragma once

#include "graph/graph.h"

namespace kinora {

// A causal 3x3x3 convolution, after pad_edge, of a film whose pictures were doubled by nearest neighbour, becomes four
// (3x2x2) filters over the film before; where all frames but the first were doubled too, eight (2x2x2) filters. Their
// taps are sums of the 27: 12/27 or 8/27 of the products, and no doubled film. With zeros all around in place of edges,
// four filters are used, and frames that were all doubled stay so.
Graph fold_film_upsampling(const Graph& graph);

// pad_edge(group_norm(x)) becomes group_norm_pad(x), where nothing else reads the norm and the batch and the channels
// are not padded.
Graph fuse_norm_padding(const Graph& graph);

}  // namespace kinora
