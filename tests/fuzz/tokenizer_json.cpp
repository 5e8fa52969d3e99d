#include "core/error.h"
#include "text/bpe.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  try {
    BpeTokenizer t(parse_tokenizer_json(std::string(reinterpret_cast<const char*>(data), size), "fuzz"));
    t.decode(t.encode("a red  apple \xf0\x9f\x8d\x8e<bos>\n"));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
