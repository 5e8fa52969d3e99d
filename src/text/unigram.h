// SentencePiece's unigram model: a word becomes the pieces with the greatest sum of scores ("Subword Regularization",
// arXiv:1804.10959), found by the Viterbi algorithm.
#pragma once

#include "text/charsmap.h"
#include "text/stages.h"

namespace kinora {

struct UnigramSpec {
  // How a piece takes part: `whole` (SentencePiece's user-defined) is taken wherever it occurs; `unseen` (control,
  // byte and unused pieces) never comes from text.
  enum class Kind : uint8_t { normal, whole, unseen };
  struct Piece {
    std::string text;
    double score = 0;
    Kind kind = Kind::normal;
  };
  std::vector<Piece> pieces;  // by id; of two with one text the later counts
  int32_t unk = -1;           // in [0, pieces)
  bool byte_fallback = false;
  // SentencePiece adds scores up in float32 and ranks unknown characters below its normal pieces; Hugging Face's
  // library does so in float64, below all pieces.
  bool sentencepiece_arithmetic = false;
};

class UnigramModel : public WordModel {
 public:
  explicit UnigramModel(const UnigramSpec& spec);
  // A run of unknown characters becomes one unknown id, or with byte_fallback its bytes.
  void encode(std::string_view word, std::vector<int32_t>& out) const override;

 private:
  struct Scored {
    double score;
    bool whole;
  };
  std::vector<Scored> pieces_;
  Trie trie_;
  double unk_score_ = 0, whole_score_ = 0;
  int32_t unk_ = 0, byte_ids_[256];
  bool bytes_ = false, single_ = false;
};

// SentencePiece's normalizer.
struct SpaceRules {
  bool dummy_prefix = true, fewer_spaces = true, escape = true;
};
// Maps characters (the longest key first; a piece of `whole` is left as it is), drops spaces at the ends and doubled
// ones, puts a space in front and writes U+2581 for spaces, as the rules say.
std::string normalize_as_sentencepiece(std::string_view text, const CharsMap& map, const Trie& whole,
                                       const SpaceRules& rules);

// "▁" as a space, none at the beginning of a text; "<0x41>" as its byte.
std::string show_unigram_piece(std::string_view piece, bool first);

}  // namespace kinora
