#include "diffusion/video_times.h"

#include <charconv>
#include <cmath>

#include "core/error.h"

namespace kinora {
namespace {

constexpr double kDensest = 3, kWidth = 1.0 / 12, kLatest = 10000;

}  // namespace

std::vector<double> uniform_positions(const VideoShape& s) {
  std::vector<double> positions;
  for (int64_t i = 0; i < s.latent_frames; ++i) positions.push_back(static_cast<double>(i));
  return positions;
}

std::vector<double> adaptive_positions(const VideoShape& s, const std::vector<double>& keys) {
  if (keys.empty()) fail(ErrorKind::usage, "adaptive times need at least one key frame");
  auto last = static_cast<double>(s.frames - 1);
  for (double key : keys) {
    if (!(key >= 0 && key <= last)) {
      fail(ErrorKind::usage, "a key frame must be from 0 to " + std::to_string(s.frames - 1) + ", the film's last");
    }
  }
  if (s.latent_frames == 1) return {0};
  // The integral of the density from 0 to t, both as parts of the film.
  auto integral = [&](double t) {
    double sum = t, scale = kWidth * std::sqrt(2.0);
    for (double key : keys) {
      double k = key / last;
      sum += kDensest * kWidth * std::sqrt(std::acos(-1.0) / 2) * (std::erf((t - k) / scale) + std::erf(k / scale));
    }
    return sum;
  };
  auto steps = static_cast<double>(s.latent_frames - 1);
  std::vector<double> positions{0};
  for (int64_t i = 1; i + 1 < s.latent_frames; ++i) {
    double wanted = integral(1) * static_cast<double>(i) / steps, low = 0, high = 1;
    for (int halving = 0; halving < 60; ++halving) {
      double middle = (low + high) / 2;
      (integral(middle) < wanted ? low : high) = middle;
    }
    positions.push_back(low * steps);
  }
  positions.push_back(steps);
  return positions;
}

std::vector<double> parse_positions(const VideoShape& s, std::string_view text, const std::string& name) {
  std::vector<double> times;
  for (int64_t line = 1; !text.empty(); ++line) {
    std::string_view row = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), row.size() + 1));
    row = row.substr(0, row.find('#'));
    while (!row.empty() && (row.back() == ' ' || row.back() == '\t' || row.back() == '\r')) row.remove_suffix(1);
    while (!row.empty() && (row.front() == ' ' || row.front() == '\t')) row.remove_prefix(1);
    if (row.empty()) continue;
    double time = -1;
    auto [end, error] = std::from_chars(row.data(), row.data() + row.size(), time);
    if (error != std::errc() || end != row.data() + row.size() || !(time >= 0 && time <= kLatest) ||
        (!times.empty() && time <= times.back())) {
      fail(ErrorKind::input, name + ", line " + std::to_string(line) +
                                 ": a time must be a number from 0 to 10000, greater than the one before");
    }
    times.push_back(time);
    if (static_cast<int64_t>(times.size()) > s.frames) break;
  }
  auto count = static_cast<int64_t>(times.size());
  if (count != s.latent_frames && count != s.frames) {
    fail(ErrorKind::input, name + " must list " + std::to_string(s.latent_frames) +
                               " times, one for each latent frame, or " + std::to_string(s.frames) +
                               ", one for each frame; it has " + (count > s.frames ? "more" : std::to_string(count)));
  }
  // Latent frame i has the time of frame i·temporal: 0, 4, 8 … of an even film are the positions 0, 1, 2 …
  std::vector<double> positions;
  int64_t temporal = s.layout.temporal, stride = count == s.latent_frames ? 1 : temporal;
  for (int64_t i = 0; i < s.latent_frames; ++i) {
    positions.push_back(times[static_cast<size_t>(i * stride)] / static_cast<double>(temporal));
  }
  return positions;
}

std::vector<double> frame_times(const VideoShape& s, const std::vector<double>& positions) {
  std::vector<double> times;
  int64_t temporal = s.layout.temporal;
  for (int64_t f = 0; f < s.frames; ++f) {
    auto before = static_cast<size_t>(f / temporal);
    double part = static_cast<double>(f % temporal) / static_cast<double>(temporal), at = positions[before];
    // Behind the last latent frame, where the autoencoder is not causal, time goes on as it did.
    if (part > 0) {
      bool inside = before + 1 < positions.size();
      double step = inside ? positions[before + 1] - at : before > 0 ? at - positions[before - 1] : 1;
      at += part * step;
    }
    times.push_back(at * static_cast<double>(temporal));
  }
  return times;
}

}  // namespace kinora
