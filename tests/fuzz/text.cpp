// Any text through kinora-mini's tokenizer and the prompt's preparation.
#include "core/error.h"
#include "diffusion/prompt.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  static auto tokenizer = load_tokenizer("models/kinora-mini/tokenizer");
  std::string text(reinterpret_cast<const char*>(data), size);
  try {
    text = preprocess_prompt(text);
    tokenizer->decode(tokenizer->encode(text));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
