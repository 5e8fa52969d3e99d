// Which nodes need no work of their own: reshapes, and slices that every reader can read in place.
#pragma once

#include <functional>
#include <vector>

#include "graph/graph.h"

namespace kinora {

Ints contiguous_strides(const Shape& shape);
// The strides of the same elements seen as another shape; empty when no strides say that.
Ints reshaped_strides(const Shape& from, const Ints& strides, const Shape& to);

struct Views {
  std::vector<NodeId> storage;  // per node: the node that holds its elements
  std::vector<int64_t> offset;  // per node: elements from the start of those
  std::vector<Ints> strides;    // per node, in elements
  bool is_view(NodeId id) const { return storage[static_cast<size_t>(id)] != id; }
};

// `strided(node)`: whether that node's kernel reads slices in place.
Views find_views(const Graph& graph, const std::function<bool(const Node&)>& strided);

}  // namespace kinora
