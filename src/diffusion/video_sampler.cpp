#include "diffusion/video_sampler.h"

#include <algorithm>
#include <cmath>

#include "diffusion/finite.h"

namespace kinora {
namespace {

constexpr int64_t kGuidedSteps = 10;  // steps before guidance oscillates

// torch.linspace in float32: from the nearer end.
float linspace(float first, float last, int64_t count, int64_t i) {
  if (count == 1) return first;
  float step = (last - first) / static_cast<float>(count - 1);
  return i < count / 2 ? first + step * static_cast<float>(i) : last - step * static_cast<float>(count - 1 - i);
}

// Which runs a step needs besides the one with prompt and condition.
struct Runs {
  bool unprompted, bare;
  int64_t count() const { return 1 + unprompted + bare; }
};

Runs plan_step(const MmditConfig& config, const VideoCondition& condition, const VideoSampleOptions& options,
               size_t step) {
  if (config.guidance_embed) return {false, false};
  if (!options.skip) return {true, true};
  const GuidanceStep& g = options.guidance[step];
  bool image = std::any_of(g.image.begin(), g.image.end(), [](float v) { return v != 1; });
  // Without a condition the run with the negative prompt and the bare one are the same.
  bool bare = image && config.cond_embed && !condition.none();
  return {g.text != 1 || bare, bare};
}

void check_inputs(const MmditConfig& c, const VideoSampleInputs& in, const VideoSampleOptions& o) {
  int64_t tokens = in.positions.tokens();
  check(in.latents.shape() == Shape{1, tokens, c.in_channels}, "sample_film: latents");
  check(o.levels.size() >= 2 && o.first_step + 1 < o.levels.size(), "sample_film: levels");
  if (!c.cond_embed && !in.condition.none()) {
    fail(ErrorKind::usage, "this transformer takes no pictures or films, only text");
  }
  if (c.cond_embed) {
    check(in.condition.packed.shape() == Shape{1, tokens, c.cond_channels()}, "sample_film: condition");
  }
  if (c.guidance_embed) return;
  check(o.guidance.size() + 1 == o.levels.size(), "sample_film: one guidance a step");
  for (const GuidanceStep& g : o.guidance) {
    check(g.image.size() == 1 || g.image.size() == in.positions.frames.size(), "sample_film: image guidance");
  }
}

// c becomes the guided prediction.
void guide(Tensor& c, const Tensor& u, const Tensor& b, const GuidanceStep& g, int64_t frames) {
  int64_t per_frame = c.numel() / frames;
  float text = g.text - 1, *y = c.data<float>();
  const float *plain = u.data<float>(), *bare = b.defined() ? b.data<float>() : nullptr;
  for (int64_t f = 0; f < frames; ++f) {
    float image = g.image[g.image.size() == 1 ? 0 : static_cast<size_t>(f)] - 1;
    for (int64_t i = f * per_frame; i < (f + 1) * per_frame; ++i) {
      y[i] += text * (y[i] - plain[i]);
      if (bare) y[i] += image * (plain[i] - bare[i]);
    }
  }
}

class FilmSampler {
 public:
  FilmSampler(VideoModel& model, const VideoSampleInputs& in, const VideoSampleOptions& o)
      : model_(model), in_(in), options_(o), config_(model.config()) {
    run_.positions = in.positions;
    run_.guidance = Tensor::from({1}, std::vector<float>{static_cast<float>(o.embedded_guidance)});
    if (config_.cond_embed) nothing_ = Tensor::zeros(in.condition.packed.shape());
  }

  Tensor predict(size_t step, const Tensor& latents) {
    run_.latents = latents;
    run_.timestep = Tensor::from({1}, std::vector<float>{options_.levels[step]});
    Runs runs = plan_step(config_, in_.condition, options_, step);
    Tensor c = forward(in_.prompt, in_.condition.packed);
    if (!runs.unprompted) return c;
    Tensor u = forward(in_.negative, in_.condition.packed), b;
    if (runs.bare) b = forward(in_.negative, nothing_);
    guide(c, u, b, options_.guidance[step], static_cast<int64_t>(in_.positions.frames.size()));
    return c;
  }

  int64_t forwards() const { return forwards_; }

 private:
  Tensor forward(const VideoText& text, const Tensor& condition) {
    run_.text = text.hidden;
    run_.pooled = text.pooled;
    run_.cond = condition;
    ++forwards_;
    Tensor velocity = model_.predict(run_);
    check_finite(velocity, "the transformer");
    return velocity;
  }

  VideoModel& model_;
  const VideoSampleInputs& in_;
  const VideoSampleOptions& options_;
  const MmditConfig& config_;
  VideoModelInputs run_;
  Tensor nothing_;  // no mask, no latents
  int64_t forwards_ = 0;
};

Tensor combine(float a, const Tensor& x, float b, const Tensor& y) {
  check(x.shape() == y.shape(), "combine: shapes");
  Tensor out(x.shape(), DType::f32);
  const float *first = x.data<float>(), *second = y.data<float>();
  float* to = out.data<float>();
  for (int64_t i = 0, n = x.numel(); i < n; ++i) to[i] = a * first[i] + b * second[i];
  return out;
}

}  // namespace

double flow_shift(int64_t tokens_per_frame, int64_t latent_frames) {
  double slope = 2.0 / (4096 - 256), at_zero = 1 - slope * 256;
  return (slope * static_cast<double>(tokens_per_frame) + at_zero) * std::sqrt(static_cast<double>(latent_frames));
}

std::vector<float> flow_levels(int64_t steps, double shift) {
  if (steps < 1 || steps > 1000) fail(ErrorKind::usage, "steps must be from 1 to 1000, not " + std::to_string(steps));
  if (!(shift > 0 && shift <= 1e6)) {
    fail(ErrorKind::usage, "the flow shift must be above 0 and at most 1000000, not " + std::to_string(shift));
  }
  std::vector<float> levels;
  for (int64_t i = 0; i <= steps; ++i) {
    float u = linspace(1, 0, steps + 1, i);
    levels.push_back(static_cast<float>(shift) * u / (1 + static_cast<float>(shift - 1) * u));
  }
  return levels;
}

size_t first_step_at(const std::vector<float>& levels, double strength) {
  if (!(strength > 0 && strength <= 1)) fail(ErrorKind::usage, "the strength must be above 0 and at most 1");
  check(levels.size() >= 2, "first_step_at: levels");
  size_t step = 0;
  while (step + 2 < levels.size() && levels[step] > static_cast<float>(strength)) ++step;
  return step;
}

std::vector<GuidanceStep> guidance_steps(const GuidanceOptions& o, int64_t steps, int64_t latent_frames,
                                         const VideoCondition& condition) {
  if (!(std::abs(o.text) <= 1000 && std::abs(o.image) <= 1000)) {
    fail(ErrorKind::usage, "guidance must be from -1000 to 1000");
  }
  std::vector<GuidanceStep> all;
  for (int64_t i = 0; i < steps; ++i) {
    bool on = i < kGuidedSteps || i % 2 == 0;
    GuidanceStep g{static_cast<float>(on || !o.text_oscillation ? o.text : 1),
                   {static_cast<float>(on || !o.image_oscillation ? o.image : 1)}};
    if (g.image[0] > 1 && o.temporal_ramp && condition.picture()) {
      float last = linspace(g.image[0], 1, steps + 1, i);
      g.image.clear();
      for (int64_t f = 0; f < latent_frames; ++f) g.image.push_back(linspace(1, last, latent_frames, f));
    }
    all.push_back(std::move(g));
  }
  return all;
}

int64_t count_forwards(const MmditConfig& config, const VideoCondition& condition, const VideoSampleOptions& o) {
  int64_t count = 0;
  for (size_t i = o.first_step; i + 1 < o.levels.size(); ++i) count += plan_step(config, condition, o, i).count();
  return count;
}

Tensor add_flow_noise(const Tensor& latents, const Tensor& noise, float level) {
  return combine(1 - level, latents, level, noise);
}

Tensor VideoStepReport::clean() const { return combine(1, latents, -level, velocity); }

VideoSample sample_film(VideoModel& model, const VideoSampleInputs& in, const VideoSampleOptions& o) {
  check_inputs(model.config(), in, o);
  FilmSampler sampler(model, in, o);
  auto steps = static_cast<int64_t>(o.levels.size() - 1 - o.first_step);
  int64_t planned = count_forwards(model.config(), in.condition, o);
  Tensor x = in.latents;
  for (size_t i = o.first_step; i + 1 < o.levels.size(); ++i) {
    Tensor velocity = sampler.predict(i, x);
    x = combine(1, x, o.levels[i + 1] - o.levels[i], velocity);
    auto done = static_cast<int64_t>(i + 1 - o.first_step);
    if (o.on_step) o.on_step({done, steps, sampler.forwards(), planned, x, velocity, o.levels[i + 1]});
  }
  return {x, sampler.forwards()};
}

}  // namespace kinora
