// SentencePiece's precompiled character map: a double-array trie of byte strings and what each becomes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kinora {

class CharsMap {
 public:
  CharsMap() = default;
  // The blob of a SentencePiece model or of tokenizer.json: u32 bytes of the trie, the trie (u32 units, as Darts-clone
  // lays them out), then the replacements, each ended by a zero byte. Throws Error(model) naming `name`.
  CharsMap(std::string_view blob, const std::string& name);

  bool empty() const { return units_.empty(); }
  // The longest (shortest) key that `text` begins with: its length and its replacement.
  std::optional<std::pair<size_t, std::string_view>> longest(std::string_view text) const;
  std::optional<std::pair<size_t, std::string_view>> shortest(std::string_view text) const;

  // As Hugging Face's Precompiled does it: a cluster of less than six bytes becomes, as a whole, what the shortest key
  // that it begins with becomes; else character by character.
  std::string replace_clusters(std::string_view text) const;

 private:
  template <class F>
  void matches(std::string_view text, F&& found) const;
  std::string_view replacement(uint32_t at) const;
  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace kinora
