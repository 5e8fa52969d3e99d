#include "core/error.h"
#include "text/sentencepiece.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  try {
    StagedTokenizer t(parse_t5_sentencepiece({reinterpret_cast<const char*>(data), size}, "fuzz", 3));
    t.decode(t.encode("a red  apple \xf0\x9f\x8d\x8e</s>\n <extra_id_1> caf\xc3\xa9"));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
