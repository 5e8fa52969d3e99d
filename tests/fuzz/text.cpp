// Any text through kinora-mini's tokenizer and the prompt's preparation, and through T5's and CLIP's.
#include "core/error.h"
#include "diffusion/prompt.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  static auto tokenizer = load_tokenizer("models/kinora-mini/tokenizer");
  static auto t5 = load_tokenizer("tests/golden/t5_tokenizer"),
              t5_json = load_tokenizer("tests/golden/t5_tokenizer_json");
  static auto clip = load_tokenizer("tests/golden/clip_tokenizer");
  std::string text(reinterpret_cast<const char*>(data), size);
  try {
    for (Tokenizer* other : {t5.get(), t5_json.get(), clip.get()}) other->decode(other->encode(text));
    text = preprocess_prompt(text);
    tokenizer->decode(tokenizer->encode(text));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
