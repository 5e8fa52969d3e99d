#include "graph/views.h"

#include <algorithm>

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

bool is_contiguous(const Shape& shape, const Ints& strides) {
  Ints plain = contiguous_strides(shape);
  for (int axis = 0; axis < shape.rank(); ++axis) {
    if (shape[axis] != 1 && strides[static_cast<size_t>(axis)] != plain[static_cast<size_t>(axis)]) return false;
  }
  return true;
}

namespace {

// What a kernel may expect of the address of a contiguous input or output.
constexpr int64_t kAlignment = 256;

class Finder {
 public:
  Finder(const Graph& graph, const ViewRules& rules) : graph_(graph), rules_(rules) {
    size_t count = graph.nodes().size();
    views_ = {std::vector<NodeId>(count), std::vector<int64_t>(count, 0), std::vector<Ints>(count),
              std::vector<bool>(count, false)};
    users_.resize(count);
    is_output_.assign(count, false);
    for (size_t i = 0; i < count; ++i) {
      views_.storage[i] = static_cast<NodeId>(i);
      views_.strides[i] = contiguous_strides(graph.nodes()[i].spec.shape);
      for (NodeId input : graph.nodes()[i].inputs) {
        users_[static_cast<size_t>(input)].push_back(static_cast<NodeId>(i));
      }
    }
    for (const auto& [name, id] : graph.outputs()) is_output_[static_cast<size_t>(id)] = true;
  }

  Views find() {
    for (NodeId id = 0; id < static_cast<NodeId>(graph_.nodes().size()); ++id) {
      if (node(id).op->name == "concat") place_parts(id);
    }
    for (NodeId id = 0; id < static_cast<NodeId>(graph_.nodes().size()); ++id) {
      if (node(id).op->name == "reshape" || is_slice(id)) look_through(id);
      if (node(id).op->name == "part") look_into(id);
    }
    return std::move(views_);
  }

 private:
  const Node& node(NodeId id) const { return graph_.node(id); }
  static size_t at(NodeId id) { return static_cast<size_t>(id); }
  bool is_slice(NodeId id) const { return node(id).op->name == "slice" && node(id).attrs.integer("stride") == 1; }

  bool aligned(NodeId id, int64_t elements, int64_t bytes) const {
    return elements * static_cast<int64_t>(dtype_size(node(id).spec.dtype)) % bytes == 0;
  }

  // Whether everything that reads node `id`, with these strides, can; `writer`, a concat, need not.
  bool readable(NodeId id, const Ints& strides, NodeId writer = -1) const {
    if (strides.empty() || strides.back() != 1 || is_output_[at(id)]) return false;
    for (NodeId user : users_[at(id)]) {
      if (user == writer) continue;
      if (node(user).op->name == "reshape") {
        Ints after = reshaped_strides(node(id).spec.shape, strides, node(user).spec.shape);
        if (!readable(user, after, writer)) return false;
      } else if (!rules_.reads_strided(node(user))) {
        return false;
      }
    }
    return true;
  }

  bool is_read_as_output(NodeId id) const {
    if (is_output_[at(id)]) return true;
    for (NodeId user : users_[at(id)]) {
      const std::string_view op = node(user).op->name;
      if ((op == "reshape" || op == "part") && is_read_as_output(user)) return true;
    }
    return false;
  }

  // A reshape lies where its source lies, and so does a slice that its readers can read there.
  void look_through(NodeId id) {
    NodeId source = node(id).inputs[0];
    const Shape& from = node(source).spec.shape;
    const Ints& strides = views_.strides[at(source)];
    int64_t offset = views_.offset[at(source)];
    if (is_slice(id)) {
      auto axis = static_cast<size_t>(node(id).attrs.integer("axis"));
      offset += node(id).attrs.integer("start") * strides[axis];
      bool plain = is_contiguous(node(id).spec.shape, strides) && aligned(id, offset, kAlignment) &&
                   !rules_.fixed(id) && !is_read_as_output(id);
      if (!plain && !(rules_.reads_strided(node(id)) && readable(id, strides))) return;
    }
    views_.strides[at(id)] = is_slice(id) ? strides : reshaped_strides(from, strides, node(id).spec.shape);
    views_.storage[at(id)] = views_.storage[at(source)];
    views_.offset[at(id)] = offset;
    views_.idle[at(id)] = true;
  }

  // A part lies where its source has it, which is contiguous: a part reads no slice in place.
  void look_into(NodeId id) {
    NodeId source = node(id).inputs[0];
    int64_t bytes = views_.offset[at(source)] * static_cast<int64_t>(dtype_size(node(source).spec.dtype));
    views_.storage[at(id)] = views_.storage[at(source)];
    views_.offset[at(id)] =
        (bytes + node(id).attrs.integer("offset")) / static_cast<int64_t>(dtype_size(node(id).spec.dtype));
    views_.idle[at(id)] = true;
  }

  // The node that computes a part, behind its reshapes.
  NodeId root_of(NodeId part) const {
    while (node(part).op->name == "reshape") part = node(part).inputs[0];
    return part;
  }

  // The strides that a part's root gets inside a concat with these strides; empty when it cannot be written there.
  Ints strides_inside(NodeId part, NodeId concat, int64_t offset) const {
    NodeId root = root_of(part);
    const std::string_view op = node(root).op->name;
    if (is_leaf(node(root)) || rules_.fixed(root) || op == "concat" || op == "slice" || op == "part") return {};
    if (views_.storage[at(root)] != root || is_read_as_output(root)) return {};
    const Shape& shape = node(root).spec.shape;
    const Ints& inside = views_.strides[at(concat)];
    Ints strides = reshaped_strides(node(part).spec.shape, inside, shape);
    if (strides.empty()) return {};
    if (is_contiguous(shape, strides)) return aligned(root, offset, kAlignment) ? strides : Ints();
    int64_t row = node(part).spec.shape[-1];
    Ints rows = reshaped_strides(node(part).spec.shape, inside, {shape.numel() / row, row});
    bool fits = !rows.empty() && aligned(root, offset, kAlignment) && aligned(root, rows[0], 16);
    return fits && rules_.writes_strided(node(root)) && readable(root, strides, concat) ? strides : Ints();
  }

  // All parts of a concat, or none, are computed where they lie in its result.
  void place_parts(NodeId concat) {
    const Node& whole = node(concat);
    if (rules_.fixed(concat) || whole.spec.shape.numel() == 0) return;
    auto axis = static_cast<int>(whole.attrs.integer("axis"));
    int64_t offset = 0;
    std::vector<std::pair<NodeId, Ints>> roots;
    std::vector<int64_t> offsets;
    for (NodeId part : whole.inputs) {
      NodeId root = root_of(part);
      Ints strides = strides_inside(part, concat, offset);
      bool twice = std::any_of(roots.begin(), roots.end(), [&](const auto& r) { return r.first == root; });
      if (strides.empty() || twice) return;
      roots.emplace_back(root, std::move(strides));
      offsets.push_back(offset);
      offset += node(part).spec.shape[axis] * views_.strides[at(concat)][static_cast<size_t>(axis)];
    }
    for (size_t i = 0; i < roots.size(); ++i) {
      views_.storage[at(roots[i].first)] = concat;
      views_.offset[at(roots[i].first)] = offsets[i];
      views_.strides[at(roots[i].first)] = std::move(roots[i].second);
    }
    views_.idle[at(concat)] = true;
  }

  const Graph& graph_;
  const ViewRules& rules_;
  Views views_;
  std::vector<std::vector<NodeId>> users_;
  std::vector<bool> is_output_;
};

}  // namespace

Views find_views(const Graph& graph, const ViewRules& rules) { return Finder(graph, rules).find(); }

}  // namespace kinora
