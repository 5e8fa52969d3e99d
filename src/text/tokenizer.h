// From text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kinora {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Ids of UTF-8 text; with `add_bos` the beginning-of-sequence token goes first when the tokenizer's file asks for it.
  // Throws Error(input) on invalid UTF-8, naming the byte.
  virtual std::vector<int32_t> encode(std::string_view text, bool add_bos = true) const = 0;
  // Exactly `length` ids: those of encode, cut short so that a closing token still fits, or followed by pad_id().
  // Throws Error(usage) when not even the tokens around a text fit.
  virtual std::vector<int32_t> encode_padded(std::string_view text, size_t length) const;
  virtual std::string decode(std::span<const int32_t> ids) const = 0;
  virtual std::string_view piece(int32_t id) const = 0;
  virtual size_t vocab_size() const = 0;
  virtual int32_t pad_id() const = 0;
  virtual int32_t bos_id() const = 0;
  virtual int32_t eos_id() const = 0;
  virtual int32_t unk_id() const = 0;
};

// The tokenizer in a folder: tokenizer.json (Gemma's kind of BPE, CLIP's, or a unigram model as T5's), else
// tokenizer.model (Gemma), spiece.model (T5), or vocab.json and merges.txt (CLIP). Throws Error(io) or Error(model).
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& folder);

}  // namespace kinora
