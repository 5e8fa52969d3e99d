// CLIP's byte-pair encoding: a word's bytes, the last one marked as the end of the word, merged by rank.
#pragma once

#include "text/stages.h"

namespace kinora {

struct ClipBpeSpec {
  std::unordered_map<std::string, int32_t> ids;  // pieces in GPT-2's byte alphabet, "</w>" at the end of a word's last
  std::vector<std::pair<std::string, std::string>> merges;  // by rank
  std::string suffix = "</w>";
  int32_t unk = -1;  // for a byte that has no piece; without it such a byte is left out
};

class ClipBpeModel : public WordModel {
 public:
  // Throws Error(model) naming `name` when a merge names a piece that is not there.
  ClipBpeModel(const ClipBpeSpec& spec, const std::string& name);
  void encode(std::string_view word, std::vector<int32_t>& out) const override;

 private:
  int32_t inner_[256], last_[256];  // ids of single bytes
  BpeMerges merges_;
  int32_t unk_;
};

// CLIP's words: an English contraction's end, a run of letters, one digit, or a run of anything else but space.
// With `special_words` "<|startoftext|>" and "<|endoftext|>" are looked for first; `again` cuts the words found once
// more, as ByteLevel with its own pattern does.
struct ClipWords {
  bool special_words = true, again = true;
};
Stages::Splitter clip_words(const ClipWords& options);

// Every run of white space becomes one space.
std::string collapse_white_space(std::string_view text);

// Reads vocab.json and merges.txt as transformers' CLIPTokenizer does, with its normalizers and special tokens.
// Throws Error(model) naming the file.
Stages parse_clip_files(const std::string& vocab, const std::string& vocab_name, const std::string& merges,
                        const std::string& merges_name);

// A piece's bytes, a space for "</w>".
std::string show_clip_piece(std::string_view piece, bool first);

}  // namespace kinora
