// Reads SentencePiece's tokenizer.model, a protobuf message (sentencepiece_model.proto), as far as Gemma's needs it.
#pragma once

#include <string>
#include <string_view>

#include "text/bpe.h"

namespace kinora {

// Throws Error(model) naming `name` for a damaged file, a model type other than BPE, or a normalizer beyond spaces.
// Control and user-defined pieces become added tokens and <bos> goes first, as in Hugging Face's conversion.
BpeModel parse_sentencepiece(std::string_view file, const std::string& name);

}  // namespace kinora
