#include "diffusion/video_latents.h"

#include <algorithm>
#include <cstring>

#include "core/rng.h"

namespace kinora {
namespace {

// Calls f(offset in packed, offset in unpacked) for every element.
template <class F>
void each_element(int64_t frames, int64_t height, int64_t width, int64_t channels, int64_t patch, const F& f) {
  int64_t at = 0;
  for (int64_t t = 0; t < frames; ++t) {
    for (int64_t y = 0; y < height; y += patch) {
      for (int64_t x = 0; x < width; x += patch) {
        for (int64_t c = 0; c < channels; ++c) {
          for (int64_t dy = 0; dy < patch; ++dy) {
            for (int64_t dx = 0; dx < patch; ++dx) f(at++, ((t * height + y + dy) * width + x + dx) * channels + c);
          }
        }
      }
    }
  }
}

Shape unpacked_shape(const VideoShape& s) {
  return {1, s.latent_frames, s.latent_height, s.latent_width, s.layout.channels};
}

// An output element lies between two of the input's, `part` of the way.
struct Tap {
  int64_t first, second;
  float part;
};

std::vector<Tap> bilinear_taps(int64_t in, int64_t out) {
  std::vector<Tap> taps;
  float scale = static_cast<float>(in) / static_cast<float>(out);
  for (int64_t i = 0; i < out; ++i) {
    float at = std::max(scale * (static_cast<float>(i) + 0.5f) - 0.5f, 0.0f);
    int64_t first = std::min(static_cast<int64_t>(at), in - 1);
    taps.push_back({first, std::min(first + 1, in - 1), at - static_cast<float>(first)});
  }
  return taps;
}

void expect_shape(const char* what, const Shape& got, const Shape& expected) {
  if (!(got == expected))
    fail(ErrorKind::internal, std::string(what) + " must be " + expected.str() + ", not " + got.str());
}

}  // namespace

Tensor pack_latents(const Tensor& latents, int64_t patch) {
  const Shape& s = latents.shape();
  check(s.rank() == 5 && s[0] == 1 && s[2] % patch == 0 && s[3] % patch == 0, "pack_latents: shape");
  Tensor packed({1, s[1] * (s[2] / patch) * (s[3] / patch), s[4] * patch * patch}, DType::f32);
  const float* from = latents.data<float>();
  float* to = packed.data<float>();
  each_element(s[1], s[2], s[3], s[4], patch, [&](int64_t p, int64_t u) { to[p] = from[u]; });
  return packed;
}

Tensor unpack_latents(const Tensor& packed, const VideoShape& s) {
  int64_t patch = s.layout.patch;
  expect_shape("packed latents", packed.shape(), {1, s.tokens(), s.layout.channels * patch * patch});
  Tensor latents(unpacked_shape(s), DType::f32);
  const float* from = packed.data<float>();
  float* to = latents.data<float>();
  each_element(s.latent_frames, s.latent_height, s.latent_width, s.layout.channels, patch,
               [&](int64_t p, int64_t u) { to[u] = from[p]; });
  return latents;
}

Tensor resize_latents(const Tensor& latents, int64_t height, int64_t width) {
  const Shape& s = latents.shape();
  check(s.rank() == 5 && s.numel() > 0 && height > 0 && width > 0, "resize_latents: shape");
  Tensor out({s[0], s[1], height, width, s[4]}, DType::f32);
  std::vector<Tap> rows = bilinear_taps(s[2], height), columns = bilinear_taps(s[3], width);
  float* to = out.data<float>();
  for (int64_t frame = 0; frame < s[0] * s[1]; ++frame) {
    const float* from = latents.data<float>() + frame * s[2] * s[3] * s[4];
    for (const Tap& y : rows) {
      const float *above = from + y.first * s[3] * s[4], *below = from + y.second * s[3] * s[4];
      for (const Tap& x : columns) {
        for (int64_t c = 0; c < s[4]; ++c) {
          int64_t left = x.first * s[4] + c, right = x.second * s[4] + c;
          float top = (1 - x.part) * above[left] + x.part * above[right];
          float bottom = (1 - x.part) * below[left] + x.part * below[right];
          *to++ = (1 - y.part) * top + y.part * bottom;
        }
      }
    }
  }
  return out;
}

Tensor video_noise(const VideoShape& s, uint64_t seed, NoiseKind kind) {
  Shape drawn{1, s.layout.channels, s.latent_frames, s.latent_height, s.latent_width};
  Tensor noise = kind == NoiseKind::cuda ? PhiloxGenerator(seed).randn(drawn).to(DType::bf16).to(DType::f32)
                                         : CpuGenerator(seed).randn(drawn);
  return noise.permuted({0, 2, 3, 4, 1});
}

VideoTaskInfo video_task(const std::string& name) {
  if (name == "t2v") return {VideoTask::text, 0};
  if (name == "i2v_head") return {VideoTask::head, 0};
  if (name == "i2v_tail") return {VideoTask::tail, 0};
  if (name == "i2v_loop") return {VideoTask::loop, 0};
  if (name == "v2v_head") return {VideoTask::extend_head, 33};
  if (name == "v2v_tail") return {VideoTask::extend_tail, 33};
  if (name == "v2v_head_easy") return {VideoTask::extend_head, 65};
  if (name == "v2v_tail_easy") return {VideoTask::extend_tail, 65};
  fail(ErrorKind::usage, "unknown task '" + name +
                             "' (t2v, i2v_head, i2v_tail, i2v_loop, v2v_head, v2v_tail, v2v_head_easy, v2v_tail_easy)");
}

int64_t reference_frames(const VideoTaskInfo& task, const VideoLayout& layout) {
  switch (task.task) {
    case VideoTask::text: return 0;
    case VideoTask::head:
    case VideoTask::tail:
    case VideoTask::loop: return 1;
    default: return layout.causal ? task.frames : task.frames - 1;
  }
}

VideoCondition video_condition(const VideoTaskInfo& info, const VideoShape& s, std::span<const Tensor> references) {
  int64_t channels = s.layout.channels;
  Tensor condition = Tensor::zeros({1, s.latent_frames, s.latent_height, s.latent_width, channels + 1});
  VideoTask task = info.task;
  size_t wanted = task == VideoTask::text ? 0 : task == VideoTask::loop ? 2 : 1;
  check(references.size() == wanted, "video_condition: number of references");
  int64_t frames = reference_frames(info, s.layout), given = frames ? latent_frames_of(s.layout, frames) : 0;
  if (int64_t all = given * static_cast<int64_t>(wanted); all > 0 && s.latent_frames <= all) {
    int64_t least = all * s.layout.temporal + (s.layout.causal ? 1 : s.layout.temporal);
    fail(ErrorKind::usage, "a film of " + std::to_string(s.frames) + " frames is too short for what is given; " +
                               std::to_string(least) + " frames or more are needed");
  }
  for (size_t r = 0; r < wanted; ++r) {
    expect_shape("a reference", references[r].shape(), {1, given, s.latent_height, s.latent_width, channels});
    bool at_end = task == VideoTask::tail || task == VideoTask::extend_tail || r == 1;
    int64_t pixels = given * s.latent_height * s.latent_width;
    float* to = condition.data<float>() + (at_end ? condition.numel() - pixels * (channels + 1) : 0);
    const float* from = references[r].data<float>();
    for (int64_t i = 0; i < pixels; ++i, to += channels + 1, from += channels) {
      to[0] = 1;
      std::memcpy(to + 1, from, static_cast<size_t>(channels) * 4);
    }
  }
  return {task, pack_latents(condition, s.layout.patch)};
}

void restore_pictures(Tensor& latents, VideoTask task, std::span<const Tensor> references) {
  VideoCondition which{task, {}};
  if (!which.picture()) return;
  for (size_t r = 0; r < references.size(); ++r) {
    bool at_end = task == VideoTask::tail || r == 1;
    float* to = latents.data<float>() + (at_end ? latents.numel() - references[r].numel() : 0);
    std::memcpy(to, references[r].raw(), references[r].bytes());
  }
}

}  // namespace kinora
