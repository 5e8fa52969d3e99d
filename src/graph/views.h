// Which nodes need no work of their own: reshapes, slices that every reader can read in place, and concats whose parts
// can be written where they belong.
#pragma once

#include <functional>
#include <vector>

#include "graph/graph.h"

namespace kinora {

Ints contiguous_strides(const Shape& shape);
// The strides of the same elements seen as another shape; empty when no strides say that.
Ints reshaped_strides(const Shape& from, const Ints& strides, const Shape& to);

// Whether its elements lie one after another.
bool is_contiguous(const Shape& shape, const Ints& strides);

struct Views {
  std::vector<NodeId> storage;  // per node: the node that holds its elements; a part of a concat comes before that
  std::vector<int64_t> offset;  // per node: elements from the start of those
  std::vector<Ints> strides;    // per node, in elements
  std::vector<bool> idle;       // per node: whether nothing is to be computed for it, its elements being there
};

// What a backend can do with a node.
struct ViewRules {
  std::function<bool(const Node&)> reads_strided;   // its kernel reads slices in place
  std::function<bool(const Node&)> writes_strided;  // its kernel can leave gaps between the rows of its result
  std::function<bool(NodeId)> fixed;                // it is computed once, and its result kept
};

Views find_views(const Graph& graph, const ViewRules& rules);

}  // namespace kinora
