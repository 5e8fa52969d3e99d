// One row per picture format.
#pragma once

#include <span>
#include <string>

#include "io/image.h"

namespace kinora {

struct ImageCodec {
  const char* endings[2];
  bool (*recognises)(const std::string& bytes);
  std::string (*encode)(const Image& image, const ImageRecord& record);
  Image (*decode)(const std::string& bytes, const std::string& name);
  ImageRecord (*record)(const std::string& bytes, const std::string& name);
};

extern const ImageCodec kPng, kJpeg, kWebp;
std::span<const ImageCodec> image_codecs();

// Throws Error(input) for pictures that are empty or larger than 16,384 pixels a side.
void check_picture_size(const std::string& name, uint64_t width, uint64_t height);

// JPEG and WebP have no named texts: both records travel in one XMP packet.
std::string to_xmp(const ImageRecord& record);
ImageRecord from_xmp(const std::string& xmp);

}  // namespace kinora
