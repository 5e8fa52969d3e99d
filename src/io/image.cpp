#include "io/image.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

#include "io/file.h"
#include "io/image_codecs.h"

namespace kinora {
namespace {

constexpr size_t kLargestFile = size_t{128} << 20;

std::string extension_of(const std::string& path) {
  size_t dot = path.rfind('.');
  std::string ending = dot == std::string::npos || path.find('/', dot) != std::string::npos ? "" : path.substr(dot + 1);
  for (char& c : ending) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return ending;
}

const ImageCodec& codec_for(const std::string& ending, const std::string& path) {
  for (const ImageCodec& codec : image_codecs()) {
    for (const char* name : codec.endings) {
      if (name && ending == name) return codec;
    }
  }
  fail(ErrorKind::usage, "cannot tell from " + path + " which kind of picture to write (use .png, .jpg or .webp)");
}

const ImageCodec& codec_of(const std::string& bytes, const std::string& name) {
  for (const ImageCodec& codec : image_codecs()) {
    if (codec.recognises(bytes)) return codec;
  }
  fail(ErrorKind::input, name + " is no PNG, JPEG or WebP picture");
}

// Pillow's Lanczos filter of support 3.
double lanczos(double x) {
  if (x == 0) return 1;
  if (std::abs(x) >= 3) return 0;
  double a = std::numbers::pi * x, b = a / 3;
  return std::sin(a) / a * std::sin(b) / b;
}

// Pillow's bicubic filter of support 2: Keys' with a = -1/2.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

struct Filter {
  double (*weight)(double);
  double support;
};
constexpr Filter kLanczos{lanczos, 3}, kBicubic{bicubic, 2};

struct Taps {
  int first;
  std::vector<int> weights;  // fixed point, 22 bits after the point
};

constexpr int kPrecision = 22;

std::vector<Taps> make_taps(const Filter& filter, int from, int to) {
  double scale = static_cast<double>(from) / to, stretch = std::max(scale, 1.0), support = filter.support * stretch;
  std::vector<Taps> taps;
  for (int i = 0; i < to; ++i) {
    double centre = (i + 0.5) * scale;
    int first = std::max(0, static_cast<int>(centre - support + 0.5));
    int last = std::min(from, static_cast<int>(centre + support + 0.5));
    std::vector<double> weights;
    double total = 0;
    for (int x = first; x < last; ++x) {
      weights.push_back(filter.weight((x - centre + 0.5) / stretch));
      total += weights.back();
    }
    Taps tap{first, {}};
    for (double w : weights) tap.weights.push_back(static_cast<int>(std::lround(w / total * (1 << kPrecision))));
    taps.push_back(std::move(tap));
  }
  return taps;
}

// Resamples along one direction; `pixel(line, position)` is the byte offset of a pixel in each layout.
void resample(const std::vector<uint8_t>& in, std::vector<uint8_t>& out, const std::vector<Taps>& taps, int lines,
              bool across, int in_width, int out_width) {
  for (int line = 0; line < lines; ++line) {
    for (size_t i = 0; i < taps.size(); ++i) {
      int64_t total[3] = {1 << (kPrecision - 1), 1 << (kPrecision - 1), 1 << (kPrecision - 1)};
      for (size_t k = 0; k < taps[i].weights.size(); ++k) {
        int position = taps[i].first + static_cast<int>(k);
        size_t at =
            3 * (across ? static_cast<size_t>(line) * static_cast<size_t>(in_width) + static_cast<size_t>(position)
                        : static_cast<size_t>(position) * static_cast<size_t>(in_width) + static_cast<size_t>(line));
        for (size_t c = 0; c < 3; ++c) total[c] += int64_t{taps[i].weights[k]} * in[at + c];
      }
      size_t to = 3 * (across ? static_cast<size_t>(line) * static_cast<size_t>(out_width) + i
                              : i * static_cast<size_t>(out_width) + static_cast<size_t>(line));
      for (size_t c = 0; c < 3; ++c)
        out[to + c] = static_cast<uint8_t>(std::clamp<int64_t>(total[c] >> kPrecision, 0, 255));
    }
  }
}

Image resize(const Filter& filter, const Image& image, int width, int height) {
  if (image.width == width && image.height == height) return image;
  Image across{width, image.height,
               std::vector<uint8_t>(static_cast<size_t>(width) * static_cast<size_t>(image.height) * 3)};
  if (image.width == width) {
    across.rgb = image.rgb;
  } else {
    resample(image.rgb, across.rgb, make_taps(filter, image.width, width), image.height, true, image.width, width);
  }
  if (image.height == height) return across;
  Image out{width, height, std::vector<uint8_t>(static_cast<size_t>(width) * static_cast<size_t>(height) * 3)};
  resample(across.rgb, out.rgb, make_taps(filter, image.height, height), width, false, width, width);
  return out;
}

}  // namespace

std::string encode_image(const std::string& format, const Image& image, const ImageRecord& record) {
  return codec_for(format, "'" + format + "'").encode(image, record);
}

void check_image_path(const std::string& path) { codec_for(extension_of(path), path); }

void save_image(const std::string& path, const Image& image, const ImageRecord& record) {
  write_atomically(path, encode_image(extension_of(path), image, record));
}

Image decode_image(const std::string& bytes, const std::string& name) {
  return codec_of(bytes, name).decode(bytes, name);
}
Image load_image(const std::string& path) { return decode_image(read_file(path, kLargestFile), path); }

ImageRecord decode_record(const std::string& bytes, const std::string& name) {
  return codec_of(bytes, name).record(bytes, name);
}
ImageRecord read_record(const std::string& path) { return decode_record(read_file(path, kLargestFile), path); }

Image resize_lanczos(const Image& image, int width, int height) { return resize(kLanczos, image, width, height); }
Image resize_bicubic(const Image& image, int width, int height) { return resize(kBicubic, image, width, height); }

// Python's round(): half to even, as nearbyint.
Image fill_crop(const Image& image, int width, int height) {
  double down = static_cast<double>(height) / image.height, across = static_cast<double>(width) / image.width;
  int wide = width, high = height;
  if (down > across) {
    wide = static_cast<int>(std::nearbyint(image.width * down));
  } else {
    high = static_cast<int>(std::nearbyint(image.height * across));
  }
  Image large = resize_bicubic(image, wide, high);
  auto top = static_cast<size_t>(std::nearbyint((high - height) / 2.0));
  auto left = static_cast<size_t>(std::nearbyint((wide - width) / 2.0));
  Image out{width, height, {}};
  for (size_t y = 0; y < static_cast<size_t>(height); ++y) {
    auto row = large.rgb.begin() + static_cast<std::ptrdiff_t>(((top + y) * static_cast<size_t>(wide) + left) * 3);
    out.rgb.insert(out.rgb.end(), row, row + width * 3);
  }
  return out;
}

Tensor to_tensor(const Image& image) {
  Tensor tensor({1, image.height, image.width, 3}, DType::f32);
  for (size_t i = 0; i < image.rgb.size(); ++i) {
    tensor.data<float>()[i] = 2.0f * (static_cast<float>(image.rgb[i]) / 255.0f) - 1.0f;
  }
  return tensor;
}

Image to_image(const Tensor& picture, int64_t index) {
  const Shape& s = picture.shape();
  check(s.rank() == 4 && s[3] == 3 && index < s[0], "to_image: [batch, height, width, 3] is needed");
  Image image{static_cast<int>(s[2]), static_cast<int>(s[1]), {}};
  auto count = static_cast<size_t>(s.product(1, 4));
  image.rgb.resize(count);
  const float* x = picture.data<float>() + static_cast<size_t>(index) * count;
  for (size_t i = 0; i < count; ++i) {
    float v = x[i] * 0.5f + 0.5f;
    v = v < 0 ? 0 : v > 1 ? 1 : v;
    // Adding 1.5 · 2^23 rounds to a whole number, half to even as nearbyint, in the low bits; and compiles to vectors.
    image.rgb[i] = static_cast<uint8_t>(std::bit_cast<uint32_t>(v * 255.0f + 12582912.0f));
  }
  return image;
}

Tensor resize_and_crop(const Tensor& picture, int64_t width, int64_t height) {
  const Shape& s = picture.shape();
  if (s[1] == height && s[2] == width) return picture;
  double ratio = std::max(static_cast<double>(height) / static_cast<double>(s[1]),
                          static_cast<double>(width) / static_cast<double>(s[2]));
  auto resized_w = static_cast<int64_t>(static_cast<double>(s[2]) * ratio),
       resized_h = static_cast<int64_t>(static_cast<double>(s[1]) * ratio);
  int64_t left = (resized_w - width) / 2, top = (resized_h - height) / 2;
  struct Sample {
    int64_t low, high;
    float weight;
  };
  auto source = [](int64_t i, int64_t from, int64_t to) {
    float at =
        std::max(0.0f, static_cast<float>(from) / static_cast<float>(to) * (static_cast<float>(i) + 0.5f) - 0.5f);
    auto low = std::min(static_cast<int64_t>(at), from - 1);
    return Sample{low, std::min(low + 1, from - 1), at - static_cast<float>(low)};
  };
  Tensor out({s[0], height, width, s[3]}, DType::f32);
  for (int64_t b = 0; b < s[0]; ++b) {
    for (int64_t y = 0; y < height; ++y) {
      Sample row = source(y + top, s[1], resized_h);
      for (int64_t x = 0; x < width; ++x) {
        Sample column = source(x + left, s[2], resized_w);
        for (int64_t c = 0; c < s[3]; ++c) {
          auto at = [&](int64_t yy, int64_t xx) {
            return picture.data<float>()[((b * s[1] + yy) * s[2] + xx) * s[3] + c];
          };
          float upper = at(row.low, column.low) * (1 - column.weight) + at(row.low, column.high) * column.weight;
          float lower = at(row.high, column.low) * (1 - column.weight) + at(row.high, column.high) * column.weight;
          out.data<float>()[((b * height + y) * width + x) * s[3] + c] = upper * (1 - row.weight) + lower * row.weight;
        }
      }
    }
  }
  return out;
}

}  // namespace kinora
