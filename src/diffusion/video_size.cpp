#include "diffusion/video_size.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <map>

#include "core/error.h"

namespace kinora {
namespace {

constexpr int64_t kLargestSide = 8192, kMostFrames = 1 << 14;

// Width and height as they are named, and their ratio; Open-Sora's opensora/datasets/aspect.py. Each is known by its
// reverse as well.
struct Aspect {
  const char *width, *height;
  double ratio;
};
constexpr std::array<Aspect, 9> kAspects{{{"2.39", "1", 2.39},
                                          {"2", "1", 2.0},
                                          {"16", "9", 16.0 / 9},
                                          {"1.85", "1", 1.85},
                                          {"9", "16", 9.0 / 16},
                                          {"5", "8", 5.0 / 8},
                                          {"3", "2", 3.0 / 2},
                                          {"4", "3", 4.0 / 3},
                                          {"1", "1", 1.0}}};

std::string name_of(const Aspect& a, bool reversed) {
  return reversed ? std::string(a.height) + ":" + a.width : std::string(a.width) + ":" + a.height;
}

// "256px" -> 65536; "720p" -> 720²·16/9. Zero when it is neither.
int64_t pixels_of(const std::string& resolution) {
  size_t digits = 0;
  int64_t side = 0;
  while (digits < resolution.size() && digits < 5 && resolution[digits] >= '0' && resolution[digits] <= '9') {
    side = side * 10 + (resolution[digits++] - '0');
  }
  std::string unit = resolution.substr(digits);
  if (side < 16 || side > kLargestSide) return 0;
  if (unit == "px") return side * side;
  return unit == "p" ? static_cast<int64_t>(static_cast<double>(side * side) / 9 * 16) : 0;
}

using Size = std::pair<int64_t, int64_t>;  // width, height

Size size_of(const Aspect& aspect, int64_t pixels, int64_t cell, bool nearest) {
  auto total = static_cast<double>(pixels);
  auto floor_to_cell = [&](double v) {
    return std::max<int64_t>(static_cast<int64_t>(std::floor(v / static_cast<double>(cell))), 1) * cell;
  };
  int64_t width = floor_to_cell(std::sqrt(total * aspect.ratio));
  int64_t height = floor_to_cell(total / static_cast<double>(width));
  if (!nearest) return {width, height};
  int64_t best = std::abs(height * width - pixels);
  const Size candidates[] = {
      {width, height - cell}, {width, height + cell}, {width - cell, height}, {width + cell, height}};
  for (const auto& [w, h] : candidates) {
    if (std::abs(h * w - pixels) >= best || w < cell || h < cell) continue;
    best = std::abs(h * w - pixels);
    width = w;
    height = h;
  }
  return {width, height};
}

// The numbers offset + n·unit around `value`, from 1 to `most`.
std::string near(int64_t value, int64_t unit, int64_t offset, int64_t most) {
  value = std::clamp<int64_t>(value, 1, most);
  int64_t below = std::max<int64_t>((value - offset) / unit, offset ? 0 : 1) * unit + offset;
  bool both = below < value && below + unit <= most;
  return std::to_string(below) + (both ? " or " + std::to_string(below + unit) : "");
}

}  // namespace

int64_t latent_frames_of(const VideoLayout& l, int64_t frames) {
  int64_t offset = l.causal ? 1 : 0;
  if (frames == 1) return 1;
  if (frames < 1 || frames > kMostFrames || (frames - offset) % l.temporal != 0) {
    fail(ErrorKind::usage, "a film of " + std::to_string(frames) +
                               " frames cannot be made; the nearest: " + near(frames, l.temporal, offset, kMostFrames) +
                               " (" + std::to_string(l.temporal) + "·n" + (offset ? " + 1" : "") + ")");
  }
  return (frames - offset) / l.temporal + offset;
}

VideoShape video_shape(const VideoLayout& l, int64_t width, int64_t height, int64_t frames) {
  int64_t cell = l.cell();
  auto valid = [&](int64_t side) { return side >= cell && side <= kLargestSide && side % cell == 0; };
  if (!valid(width) || !valid(height)) {
    fail(ErrorKind::usage, "a film of " + std::to_string(width) + "x" + std::to_string(height) +
                               " pixels cannot be made; width and height must be multiples of " + std::to_string(cell) +
                               " up to " + std::to_string(kLargestSide) + ": width " +
                               near(width, cell, 0, kLargestSide) + ", height " + near(height, cell, 0, kLargestSide));
  }
  return {l, width, height, frames, width / l.spatial, height / l.spatial, latent_frames_of(l, frames)};
}

std::vector<std::string> aspect_names() {
  std::vector<std::string> names;
  for (bool reversed : {false, true}) {
    for (const Aspect& aspect : kAspects) {
      std::string name = name_of(aspect, reversed);
      if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
  }
  return names;
}

// The reference fills its table in this order, reverses last; for training it leaves out what has the size of one
// before. Such a ratio, which it refuses then, gets the size it has alone.
std::pair<int64_t, int64_t> named_size(const std::string& resolution, const std::string& aspect, int64_t cell,
                                       bool nearest) {
  int64_t pixels = pixels_of(resolution);
  if (pixels == 0) {
    fail(ErrorKind::usage, "unknown resolution '" + resolution + "' (256px, 768px, any other Npx, or Np such as 720p)");
  }
  std::map<std::string, Size> table, reversed, rest;
  std::vector<Size> seen;
  for (const Aspect& a : kAspects) {
    Size size = size_of(a, pixels, cell, nearest), turned{size.second, size.first};
    bool fresh = !nearest || std::find(seen.begin(), seen.end(), size) == seen.end();
    seen.push_back(size);
    if (fresh) {
      table[name_of(a, false)] = size;
      reversed[name_of(a, true)] = turned;
    } else {
      rest.emplace(name_of(a, false), size);
      rest.emplace(name_of(a, true), turned);
    }
  }
  for (const auto* sizes : {&reversed, &table, &rest}) {
    if (auto found = sizes->find(aspect); found != sizes->end()) return found->second;
  }
  std::string names;
  for (const std::string& name : aspect_names()) names += (names.empty() ? "" : ", ") + name;
  fail(ErrorKind::usage, "unknown aspect ratio '" + aspect + "' (" + names + "; or give width and height)");
}

std::pair<int64_t, int64_t> size_like(const std::string& resolution, int64_t width, int64_t height, int64_t cell) {
  Size size{0, 0};
  if (size_t x = resolution.find('x'); x != std::string::npos && pixels_of(resolution) == 0) {
    auto side = [&](std::string_view digits, int64_t& value) {
      auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
      return error == std::errc() && end == digits.data() + digits.size() && value >= cell && value % cell == 0;
    };
    std::string_view text = resolution;
    if (!side(text.substr(0, x), size.first) || !side(text.substr(x + 1), size.second)) size = {0, 0};
  } else if (auto pixels = static_cast<double>(pixels_of(resolution)); pixels > 0) {
    auto w = static_cast<double>(width), h = static_cast<double>(height);
    auto nearest = [&](double v) { return std::max<int64_t>(std::llround(v / static_cast<double>(cell)), 1) * cell; };
    size = {nearest(std::sqrt(pixels * w / h)), nearest(std::sqrt(pixels * h / w))};
  }
  if (size.first == 0) {
    fail(ErrorKind::usage, "'" + resolution + "' is no resolution (256px, another Npx or Np, or WxH in " +
                               "multiples of " + std::to_string(cell) + ")");
  }
  return size;
}

std::pair<int64_t, int64_t> draft_size(const std::string& resolution, int64_t width, int64_t height, int64_t cell) {
  Size size = size_like(resolution, width, height, cell);
  if (size.first > width || size.second > height || size == Size{width, height}) {
    fail(ErrorKind::usage, "to begin from " + resolution + " (" + std::to_string(size.first) + "x" +
                               std::to_string(size.second) + ") is of no use for " + std::to_string(width) + "x" +
                               std::to_string(height) + "; it must be smaller");
  }
  return size;
}

}  // namespace kinora
