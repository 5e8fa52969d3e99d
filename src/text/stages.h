// A tokenizer in stages, as Hugging Face's tokenizers library has them: added tokens are cut out of the text, what is
// left between them is normalised and cut into words, and each word goes through a model.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/bpe.h"
#include "text/trie.h"

namespace kinora {

// What turns a word (not empty, valid UTF-8) into ids.
class WordModel {
 public:
  virtual ~WordModel() = default;
  virtual void encode(std::string_view word, std::vector<int32_t>& out) const = 0;
};

struct Stages {
  std::vector<std::string> pieces;  // by id
  std::unordered_map<std::string, int32_t> ids;
  std::vector<AddedToken> added;
  std::vector<std::function<std::string(std::string_view)>> normalizers;
  // Each cuts a word into words; `first`: it stands at the very beginning of the text.
  using Splitter = std::function<void(std::string_view word, bool first, std::vector<std::string>& out)>;
  std::vector<Splitter> splitters;
  std::shared_ptr<const WordModel> model;
  std::function<std::string(std::string_view piece, bool first)> show;  // a piece as text
  std::vector<int32_t> prefix, suffix;                                  // what is put around the ids of a text
  bool suffix_once = false;                                             // not where the text ends with it already
  int32_t pad = -1, bos = -1, eos = -1, unk = -1;

  int32_t id_of(const std::string& piece) const;  // -1 when there is none
  // Gives a piece its id; throws Error(model) naming `name` when the id is negative or beyond two million.
  void set_piece(const std::string& piece, int64_t id, const std::string& name);
};

class StagedTokenizer : public Tokenizer {
 public:
  explicit StagedTokenizer(Stages stages);
  // With `add_bos`: with the prefix and the suffix.
  std::vector<int32_t> encode(std::string_view text, bool add_bos = true) const override;
  std::vector<int32_t> encode_padded(std::string_view text, size_t length) const override;
  std::string decode(std::span<const int32_t> ids) const override;
  std::string_view piece(int32_t id) const override;
  size_t vocab_size() const override { return stages_.pieces.size(); }
  int32_t pad_id() const override { return stages_.pad; }
  int32_t bos_id() const override { return stages_.bos; }
  int32_t eos_id() const override { return stages_.eos; }
  int32_t unk_id() const override { return stages_.unk; }

 private:
  void frame(std::vector<int32_t>& ids) const;
  std::string normalize(std::string_view text) const;
  void encode_words(std::string_view text, bool first, std::vector<int32_t>& out) const;

  Stages stages_;
  Trie raw_, normalized_;  // added tokens by where they are looked for
};

// The splitters.
void split_white_space(std::string_view word, bool first, std::vector<std::string>& out);
enum class Prepend { always, first, never };
// Spaces become U+2581, which is also put in front; with `split` each U+2581 begins a word.
Stages::Splitter metaspace(Prepend prepend, bool split);

}  // namespace kinora
