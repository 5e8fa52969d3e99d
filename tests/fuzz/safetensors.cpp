#include "io/safetensors.h"

#include <string>

#include "core/error.h"
#include "io/quantized.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  std::string text(reinterpret_cast<const char*>(data), size);
  for (bool header : {true, false}) {
    try {
      if (header) parse_safetensors({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
      if (!header) read_quantization({{"quantization", text}}, "fuzz");
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::internal) throw;
    }
  }
  return 0;
}
