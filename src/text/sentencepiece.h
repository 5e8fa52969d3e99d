// Reads SentencePiece's model files, protobuf messages (sentencepiece_model.proto): Gemma's and T5's.
#pragma once

#include <string>
#include <string_view>

#include "text/bpe.h"
#include "text/stages.h"

namespace kinora {

// Throws Error(model) naming `name` for a damaged file, a model type other than BPE, or a normalizer beyond spaces.
// Control and user-defined pieces become added tokens and <bos> goes first, as in Hugging Face's conversion.
BpeModel parse_sentencepiece(std::string_view file, const std::string& name);

// A unigram model as T5 has it: `extra_ids` sentinels "<extra_id_0>" … follow its pieces, the last one first, and
// "</s>" ends a text that does not end with it. What SentencePiece itself does to a text, as the tokenizers of
// transformers 4 run it; tokenizer.json may differ in rare characters. Throws Error(model) naming `name` for a damaged
// file or another type of model.
Stages parse_t5_sentencepiece(std::string_view file, const std::string& name, int64_t extra_ids = 100);

}  // namespace kinora
