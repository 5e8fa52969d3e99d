// Reads tokenizer.json of the kinds that work in stages: unigram models (T5) and CLIP's BPE.
#pragma once

#include "text/stages.h"
#include "text/tokenizer_reader.h"

namespace kinora {

// Whether the file, already parsed, is of one of these kinds.
bool has_stages(const TokenizerReader& reader);
// Throws Error(model) naming the file and what in it is not supported.
Stages read_stages(const TokenizerReader& reader);

// The tokenizer of a whole tokenizer.json of any kind.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& json, const std::string& name);

}  // namespace kinora
