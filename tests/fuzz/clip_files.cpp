// vocab.json up to the first '#', merges.txt from there.
#include "core/error.h"
#include "text/clip_bpe.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  std::string bytes(reinterpret_cast<const char*>(data), size);
  size_t cut = std::min(bytes.find('#'), bytes.size());
  try {
    StagedTokenizer t(parse_clip_files(bytes.substr(0, cut), "vocab", bytes.substr(cut), "merges"));
    t.decode(t.encode("aa RED apple's \xf0\x9f\x8d\x8e <|endoftext|>"));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
