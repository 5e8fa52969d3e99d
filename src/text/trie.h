// A set of byte strings with numbers, asked for those that a text begins with.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kinora {

class Trie {
 public:
  Trie() = default;
  // Of a key given twice the last value holds. Keys are not empty, values not negative.
  explicit Trie(std::vector<std::pair<std::string, int32_t>> entries);

  // Calls found(length, value) for every key that `text` begins with, the shortest first.
  template <class F>
  void prefixes(std::string_view text, F&& found) const {
    int32_t node = 0;
    for (size_t i = 0; i < text.size() && (node = child(node, static_cast<unsigned char>(text[i]))) >= 0; ++i) {
      if (nodes_[static_cast<size_t>(node)].value >= 0) found(i + 1, nodes_[static_cast<size_t>(node)].value);
    }
  }

 private:
  struct Node {
    unsigned char label = 0;
    int32_t value = -1, first = 0, count = 0;  // children lie side by side, sorted by label
  };
  int32_t child(int32_t node, unsigned char label) const;
  std::vector<Node> nodes_;
};

}  // namespace kinora
