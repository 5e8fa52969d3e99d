#include "io/safetensors.h"

#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  try {
    parse_safetensors({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
