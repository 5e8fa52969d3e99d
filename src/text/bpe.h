// Byte-pair encoding in the way of Gemma: Hugging Face's tokenizer.json.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "text/tokenizer.h"

namespace kinora {

// A token that is found in the text before anything else happens.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool normalized = false, left_strip = false, right_strip = false, single_word = false;
};

struct BpeMerge {
  int32_t rank, result;
};
using BpeMerges = std::unordered_map<uint64_t, BpeMerge>;  // by (left id << 32 | right id)

// Merges neighbouring symbols, the lowest rank first and the leftmost of equals.
void apply_merges(const BpeMerges& merges, std::vector<int32_t>& symbols);

// What a tokenizer file says.
struct BpeModel {
  std::vector<std::string> pieces;  // by id
  std::unordered_map<std::string, int32_t> ids;
  BpeMerges merges;
  std::vector<AddedToken> added;
  std::vector<std::pair<std::string, std::string>> replacements;  // the normalizer, in order
  std::string prepend;                                            // put before a text that is not empty
  std::vector<int32_t> prefix;                                    // what the post-processor puts in front
  bool byte_fallback = false, fuse_unk = false, ignore_merges = false;
  int32_t unk = -1;
};

// Parses tokenizer.json; throws Error(model) naming what cannot be used.
BpeModel parse_tokenizer_json(const std::string& text, const std::string& name);

class BpeTokenizer : public Tokenizer {
 public:
  explicit BpeTokenizer(BpeModel model);
  std::vector<int32_t> encode(std::string_view text, bool add_bos = true) const override;
  std::string decode(std::span<const int32_t> ids) const override;
  std::string_view piece(int32_t id) const override;
  size_t vocab_size() const override { return model_.pieces.size(); }
  int32_t pad_id() const override { return id_of("<pad>"); }
  int32_t bos_id() const override { return id_of("<bos>"); }
  int32_t eos_id() const override { return id_of("<eos>"); }
  int32_t unk_id() const override { return model_.unk; }

 private:
  int32_t id_of(const std::string& piece) const;
  void encode_part(std::string_view text, std::vector<int32_t>& out) const;
  std::string normalize(std::string_view text) const;

  BpeModel model_;
  // A trie over the added tokens: the longest that begins at a place wins.
  struct TrieNode {
    std::unordered_map<unsigned char, int32_t> next;
    int32_t token = -1;  // index into BpeModel::added
  };
  std::vector<TrieNode> trie_;
  int32_t byte_ids_[256];
};

}  // namespace kinora
