// Pictures: PNG, JPEG and WebP files with the record of how they were made, and their way to and from tensors.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace kinora {

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;  // height · width · 3
};

// The texts kept inside a picture file.
struct ImageRecord {
  std::string parameters;  // the text that AUTOMATIC1111's web UI writes and other programs read
  std::string json;        // everything needed to make the same bytes again
};

// By the ending of `path`: .png, .jpg/.jpeg (quality 95) or .webp (quality 95); written atomically.
// Throws Error(usage) for another ending, Error(io) when writing fails.
void save_image(const std::string& path, const Image& image, const ImageRecord& record = {});
// Throws Error(usage) when save_image would refuse the ending.
void check_image_path(const std::string& path);
// The bytes of such a file; `format` is its ending without the dot. Throws Error(usage) for another.
std::string encode_image(const std::string& format, const Image& image, const ImageRecord& record);

// PNG, JPEG or WebP by its first bytes; transparency is laid over white. At most 16,384 pixels a side, 128 MiB a file.
// Throws Error(io) or Error(input).
Image load_image(const std::string& path);
Image decode_image(const std::string& bytes, const std::string& name);
// Empty texts when the picture holds none.
ImageRecord read_record(const std::string& path);
ImageRecord decode_record(const std::string& bytes, const std::string& name);

// Resampling with an antialiased Lanczos-3 filter, in the way of Pillow: 8-bit result after each direction.
Image resize_lanczos(const Image& image, int width, int height);

// The same with Pillow's bicubic filter (a = -0.5).
Image resize_bicubic(const Image& image, int width, int height);
// Bicubic resize to cover width x height, then the centre: what Open-Sora does to the picture that a film begins with.
Image fill_crop(const Image& image, int width, int height);

// [1, height, width, 3] f32: value/127.5 - 1, and back: clamp(x/2 + 0.5) · 255, rounded half to even.
Tensor to_tensor(const Image& image);
Image to_image(const Tensor& picture, int64_t index = 0);

// Bilinear resize (align_corners false, no antialiasing) to cover width x height, then the centre: what diffusers does
// after resolution binning. picture [batch, H, W, 3].
Tensor resize_and_crop(const Tensor& picture, int64_t width, int64_t height);

}  // namespace kinora
