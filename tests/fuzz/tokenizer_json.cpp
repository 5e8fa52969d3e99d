#include "core/error.h"
#include "text/stages_json.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  try {
    auto t = make_tokenizer(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
    t->decode(t->encode("a red  apple's \xf0\x9f\x8d\x8e<bos>\n e\xcc\x81 </s>"));
    t->encode_padded("a red apple", 5);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
