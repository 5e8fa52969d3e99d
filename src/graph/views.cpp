#include "graph/views.h"

namespace kinora {

Ints contiguous_strides(const Shape& shape) {
  Ints strides(static_cast<size_t>(shape.rank()));
  int64_t stride = 1;
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    strides[static_cast<size_t>(axis)] = stride;
    stride *= shape[axis];
  }
  return strides;
}

// Both shapes are cut into the smallest runs of axes with equal products; within a run, the source must be evenly
// spaced.
Ints reshaped_strides(const Shape& from, const Ints& strides, const Shape& to) {
  if (from.numel() == 0 || from.numel() == 1) return contiguous_strides(to);
  Ints result(static_cast<size_t>(to.rank()));
  int i = 0, j = 0;
  while (i < from.rank() || j < to.rank()) {
    int first_i = i, first_j = j;
    int64_t a = i < from.rank() ? from[i++] : 1, b = j < to.rank() ? to[j++] : 1;
    while (a != b) {
      if (a < b) {
        a *= from[i++];
      } else {
        b *= to[j++];
      }
    }
    int64_t stride = 0;  // of the run's last axis that is longer than one
    int64_t expected = 0;
    for (int k = i - 1; k >= first_i; --k) {
      if (from[k] == 1) continue;
      int64_t own = strides[static_cast<size_t>(k)];
      if (stride == 0) {
        stride = own;
      } else if (own != expected) {
        return {};
      }
      expected = own * from[k];
    }
    if (stride == 0) stride = 1;
    for (int k = j - 1; k >= first_j; --k) {
      result[static_cast<size_t>(k)] = stride;
      stride *= to[k];
    }
  }
  return result;
}

namespace {

struct Finder {
  const Graph& graph;
  const std::function<bool(const Node&)>& strided;
  std::vector<std::vector<NodeId>> users;
  std::vector<bool> is_output;

  // Whether everything that reads node `id`, with these strides, can.
  bool readable(NodeId id, const Ints& strides) const {
    if (strides.empty() || strides.back() != 1 || is_output[static_cast<size_t>(id)]) return false;
    for (NodeId user : users[static_cast<size_t>(id)]) {
      const Node& node = graph.node(user);
      if (node.op->name == "reshape") {
        if (!readable(user, reshaped_strides(graph.node(id).spec.shape, strides, node.spec.shape))) return false;
      } else if (!strided(node)) {
        return false;
      }
    }
    return true;
  }
};

}  // namespace

Views find_views(const Graph& graph, const std::function<bool(const Node&)>& strided) {
  size_t count = graph.nodes().size();
  Finder finder{graph, strided, std::vector<std::vector<NodeId>>(count), std::vector<bool>(count, false)};
  for (size_t i = 0; i < count; ++i) {
    for (NodeId input : graph.nodes()[i].inputs) {
      finder.users[static_cast<size_t>(input)].push_back(static_cast<NodeId>(i));
    }
  }
  for (const auto& [name, id] : graph.outputs()) finder.is_output[static_cast<size_t>(id)] = true;

  Views views{std::vector<NodeId>(count), std::vector<int64_t>(count, 0), std::vector<Ints>(count)};
  for (size_t i = 0; i < count; ++i) {
    const Node& node = graph.nodes()[i];
    views.storage[i] = static_cast<NodeId>(i);
    views.strides[i] = contiguous_strides(node.spec.shape);
    bool slice = node.op->name == "slice" && node.attrs.integer("stride") == 1 && strided(node);
    if (node.op->name == "part") {  // of something contiguous: it reads no slice in place
      auto from = static_cast<size_t>(node.inputs[0]);
      auto from_size = static_cast<int64_t>(dtype_size(graph.nodes()[from].spec.dtype));
      views.storage[i] = views.storage[from];
      views.offset[i] = (views.offset[from] * from_size + node.attrs.integer("offset")) /
                        static_cast<int64_t>(dtype_size(node.spec.dtype));
      continue;
    }
    if (!slice && node.op->name != "reshape") continue;
    auto source = static_cast<size_t>(node.inputs[0]);
    const Ints& strides = views.strides[source];
    if (slice && !finder.readable(static_cast<NodeId>(i), strides)) continue;
    views.storage[i] = views.storage[source];
    views.offset[i] = views.offset[source];
    if (slice) {
      views.offset[i] += node.attrs.integer("start") * strides[static_cast<size_t>(node.attrs.integer("axis"))];
      views.strides[i] = strides;
    } else {
      views.strides[i] = reshaped_strides(graph.node(node.inputs[0]).spec.shape, strides, node.spec.shape);
    }
  }
  return views;
}

}  // namespace kinora
