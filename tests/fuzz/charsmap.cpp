#include "text/charsmap.h"

#include "core/error.h"
#include "text/unigram.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  try {
    CharsMap map({reinterpret_cast<const char*>(data), size}, "fuzz");
    constexpr const char kText[] = "\x01 a red  apple \xf0\x9f\x8d\x8e\r\n e\xcc\x81\xcc\x82 \xef\xac\x81";
    map.replace_clusters(kText);
    normalize_as_sentencepiece(kText, map, {}, {});
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
