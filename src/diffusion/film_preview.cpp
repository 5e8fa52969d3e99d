#include "diffusion/film_preview.h"

#include <algorithm>
#include <cmath>

namespace kinora {
namespace {

constexpr int64_t kCells = 16;  // latents that a fitted picture is wide and high
constexpr int64_t kPatch = 4;   // the same of a square of one colour
constexpr int kGap = 4;

// Waves of different length and direction for each colour.
float soft_colour(double x, double y, int channel) {
  double c = channel;
  double v = 0.55 * std::sin((2.1 + c) * x + (1.3 - c) * y + 1.7 * c) + 0.35 * std::cos((5.3 - c) * x - (4.1 + c) * y) +
             0.25 * std::sin((3 * c - 7.9) * y + 2.5 * x + c);
  return static_cast<float>(std::clamp(v, -1.0, 1.0));
}

// Squares of one colour: the corners of the colours' cube, and points between them and its middle. `x`, `y` in latents.
float flat_colour(int64_t x, int64_t y, int channel) {
  int64_t patch = y / kPatch * (kCells / kPatch) + x / kPatch;
  float side = (patch >> channel & 1) != 0 ? 1.0f : -1.0f;
  return patch < 8 ? side : 0.45f * side;
}

// A picture [1, side, side, 3] of these colours, and the mean [kCells, kCells, 3] of what each latent stands for.
struct Example {
  Tensor picture, means;

  template <class Colour>
  Example(int64_t ratio, const Colour& colour)
      : picture({1, kCells * ratio, kCells * ratio, 3}, DType::f32), means({kCells, kCells, 3}, DType::f32) {
    int64_t side = kCells * ratio;
    std::vector<double> sums(static_cast<size_t>(means.numel()), 0);
    for (int64_t y = 0; y < side; ++y) {
      for (int64_t x = 0; x < side; ++x) {
        for (int c = 0; c < 3; ++c) {
          float v = colour(x, y, c);
          picture.data<float>()[(y * side + x) * 3 + c] = v;
          sums[static_cast<size_t>((y / ratio * kCells + x / ratio) * 3 + c)] += static_cast<double>(v);
        }
      }
    }
    auto count = static_cast<double>(ratio * ratio);
    for (size_t i = 0; i < sums.size(); ++i) means.data<float>()[i] = static_cast<float>(sums[i] / count);
  }
};

// Solves a·x = b for symmetric positive a [n, n] and b [n, 3], in place of b, by Cholesky's way.
void solve(std::vector<double>& a, std::vector<double>& b, size_t n) {
  for (size_t j = 0; j < n; ++j) {
    for (size_t i = j; i < n; ++i) {
      double sum = a[i * n + j];
      for (size_t k = 0; k < j; ++k) sum -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = i == j ? std::sqrt(std::max(sum, 1e-12)) : sum / a[j * n + j];
    }
  }
  for (size_t c = 0; c < 3; ++c) {
    for (size_t i = 0; i < n; ++i) {
      for (size_t k = 0; k < i; ++k) b[i * 3 + c] -= a[i * n + k] * b[k * 3 + c];
      b[i * 3 + c] /= a[i * n + i];
    }
    for (size_t i = n; i-- > 0;) {
      for (size_t k = i + 1; k < n; ++k) b[i * 3 + c] -= a[k * n + i] * b[k * 3 + c];
      b[i * 3 + c] /= a[i * n + i];
    }
  }
}

}  // namespace

LatentColours LatentColours::fit(VideoAutoencoder& autoencoder) {
  int64_t ratio = autoencoder.space_compression(), channels = autoencoder.latent_channels();
  double scale = 6.2831853 / static_cast<double>(kCells * ratio);
  Example soft(ratio, [&](int64_t x, int64_t y, int c) {
    return soft_colour(static_cast<double>(x) * scale, static_cast<double>(y) * scale, c);
  });
  Example flat(ratio, [&](int64_t x, int64_t y, int c) { return flat_colour(x / ratio, y / ratio, c); });
  Tensor latents({2 * kCells * kCells, channels}, DType::f32), means({2 * kCells * kCells, 3}, DType::f32);
  int64_t row = 0;
  for (const Example* example : {&soft, &flat}) {
    Tensor encoded = autoencoder.encode(example->picture);
    std::copy_n(encoded.data<float>(), kCells * kCells * channels, latents.data<float>() + row * channels);
    std::copy_n(example->means.data<float>(), kCells * kCells * 3, means.data<float>() + row * 3);
    row += kCells * kCells;
  }
  return fit(latents, means);
}

LatentColours LatentColours::fit(const Tensor& latents, const Tensor& colours) {
  auto n = static_cast<size_t>(latents.shape()[-1] + 1), rows = static_cast<size_t>(latents.numel()) / (n - 1);
  check(static_cast<size_t>(colours.numel()) == rows * 3, "LatentColours: as many colours as latents");
  std::vector<double> a(n * n, 0), b(n * 3, 0), row(n, 1);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t i = 0; i + 1 < n; ++i) row[i] = static_cast<double>(latents.data<float>()[r * (n - 1) + i]);
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j <= i; ++j) a[i * n + j] += row[i] * row[j];
      for (size_t c = 0; c < 3; ++c) b[i * 3 + c] += row[i] * static_cast<double>(colours.data<float>()[r * 3 + c]);
    }
  }
  for (size_t i = 0; i < n; ++i) {  // a little towards zero, for what the latents leave open
    a[i * n + i] = a[i * n + i] * (1 + 1e-6) + 1e-6;
    for (size_t j = 0; j < i; ++j) a[j * n + i] = a[i * n + j];
  }
  solve(a, b, n);
  LatentColours result;
  result.weights_ = std::move(b);
  return result;
}

Image LatentColours::picture(const Tensor& latents) const {
  const Shape& s = latents.shape();
  auto channels = static_cast<size_t>(s[2]);
  check(s.rank() == 3 && weights_.size() == (channels + 1) * 3, "LatentColours: shape of latents");
  Image image{static_cast<int>(s[1]), static_cast<int>(s[0]), {}};
  for (size_t p = 0; p < static_cast<size_t>(s[0] * s[1]); ++p) {
    for (size_t c = 0; c < 3; ++c) {
      double v = weights_[channels * 3 + c];
      for (size_t i = 0; i < channels; ++i)
        v += weights_[i * 3 + c] * static_cast<double>(latents.data<float>()[p * channels + i]);
      image.rgb.push_back(static_cast<uint8_t>(std::clamp(v * 127.5 + 127.5, 0.0, 255.0) + 0.5));
    }
  }
  return image;
}

Image preview_strip(const LatentColours& colours, const Tensor& latents, int64_t count, int scale) {
  const Shape& s = latents.shape();
  count = std::min(count, s[0]);
  Image strip;
  for (int64_t i = 0; i < count; ++i) {
    int64_t frame = count > 1 ? i * (s[0] - 1) / (count - 1) : 0;
    Image small = colours.picture(latents.rows(frame, frame + 1).reshaped({s[1], s[2], s[3]}));
    Image part = resize_bicubic(small, small.width * scale, small.height * scale);
    if (strip.rgb.empty()) {
      strip.width = static_cast<int>(count) * (part.width + kGap) - kGap;
      strip.height = part.height;
      strip.rgb.assign(static_cast<size_t>(strip.width) * static_cast<size_t>(strip.height) * 3, 255);
    }
    for (int y = 0; y < part.height; ++y) {
      auto row = static_cast<std::ptrdiff_t>(y) * part.width * 3;
      auto to = (static_cast<std::ptrdiff_t>(y) * strip.width + static_cast<int>(i) * (part.width + kGap)) * 3;
      std::copy_n(part.rgb.begin() + row, part.width * 3, strip.rgb.begin() + to);
    }
  }
  return strip;
}

}  // namespace kinora
