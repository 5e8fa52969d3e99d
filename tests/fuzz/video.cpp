#include "io/video.h"

#include "core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  try {
    VideoReader reader = VideoReader::from_bytes(std::as_bytes(std::span(data, size)), "fuzz");
    // A few bytes may ask for large frames, each of which takes long.
    if (int64_t{reader.info().width} * reader.info().height > 1 << 20) return 0;
    Image frame;
    for (int i = 0; i < 16 && reader.next(frame); ++i) {
    }
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
  }
  return 0;
}
