#include "io/image.h"

#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  try {
    std::string bytes(reinterpret_cast<const char*>(data), size);
    decode_record(bytes, "fuzz");
    decode_image(bytes, "fuzz");
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
