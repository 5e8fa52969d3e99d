#include "text/trie.h"

#include <algorithm>

namespace kinora {

Trie::Trie(std::vector<std::pair<std::string, int32_t>> entries) {
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  // Level by level: a node stands for the entries [begin, end), which share their first `depth` bytes.
  struct Range {
    size_t begin, end, depth;
  };
  std::vector<Range> ranges{{0, entries.size(), 0}};
  nodes_.resize(1);
  for (size_t i = 0; i < ranges.size(); ++i) {
    auto [begin, end, depth] = ranges[i];
    while (begin < end && entries[begin].first.size() == depth) nodes_[i].value = entries[begin++].second;
    nodes_[i].first = static_cast<int32_t>(nodes_.size());
    while (begin < end) {
      size_t next = begin + 1;
      while (next < end && entries[next].first[depth] == entries[begin].first[depth]) ++next;
      nodes_.emplace_back().label = static_cast<unsigned char>(entries[begin].first[depth]);
      ranges.push_back({begin, next, depth + 1});
      begin = next;
    }
    nodes_[i].count = static_cast<int32_t>(nodes_.size()) - nodes_[i].first;
  }
}

int32_t Trie::child(int32_t node, unsigned char label) const {
  if (nodes_.empty()) return -1;
  const Node& parent = nodes_[static_cast<size_t>(node)];
  auto begin = nodes_.begin() + parent.first, end = begin + parent.count;
  auto found = std::lower_bound(begin, end, label, [](const Node& n, unsigned char v) { return n.label < v; });
  return found != end && found->label == label ? static_cast<int32_t>(found - nodes_.begin()) : -1;
}

}  // namespace kinora
