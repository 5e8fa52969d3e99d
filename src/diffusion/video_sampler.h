// Open-Sora 2.0's sampling: noise levels, guidance by text and by picture, and the Euler method on the flow.
// State and arithmetic are float32.
#pragma once

#include <functional>
#include <vector>

#include "core/tensor.h"
#include "diffusion/video_latents.h"
#include "diffusion/video_model.h"

namespace kinora {

// How much the noise levels of so many tokens a frame and latent frames lean to noise: a line through 1 at 256 tokens
// and 3 at 4096, times the root of the number of frames.
double flow_shift(int64_t tokens_per_frame, int64_t latent_frames);

// steps + 1 noise levels from 1 to 0: s·u/(1 + (s - 1)·u) of evenly spaced u. Throws Error(usage) unless steps is 1 to
// 1000 and the shift above 0, at most 1000000.
std::vector<float> flow_levels(int64_t steps, double shift);

struct GuidanceOptions {
  double text = 7.5, image = 3;
  // From the eleventh step on, every other step is not guided.
  bool text_oscillation = true, image_oscillation = true;
  // Image guidance grows from 1 at the first latent frame to its strength at the last, which falls to 1 over the steps;
  // only where pictures are given.
  bool temporal_ramp = true;
};

// Where to begin with a film that is to keep something: the first step whose level is at most `strength`, or the last.
// Throws Error(usage) unless the strength is above 0 and at most 1.
size_t first_step_at(const std::vector<float>& levels, double strength);

// Strengths of one step; 1 means none. The prediction is
//   c + (text - 1)·(c - u) + (image - 1)·(u - b)
// of the model's results with prompt and condition (c), negative prompt and condition (u), negative prompt alone (b):
// the reference's b + image·(u - b) + text·(c - u), written so that what a strength of 1 multiplies vanishes exactly.
struct GuidanceStep {
  float text = 1;
  std::vector<float> image{1};  // one, or one a latent frame
};

// Open-Sora's rule. Throws Error(usage) unless the strengths are from -1000 to 1000.
std::vector<GuidanceStep> guidance_steps(const GuidanceOptions& options, int64_t steps, int64_t latent_frames,
                                         const VideoCondition& condition);

// A prompt as T5 and CLIP give it; it can serve any number of films.
struct VideoText {
  Tensor hidden;  // [1, tokens, text_dim] f32
  Tensor pooled;  // [1, pooled_dim] f32
};

struct VideoStepReport {
  int64_t step = 0, steps = 0;        // done, of all
  int64_t forwards = 0, planned = 0;  // runs of the model done, of all
  const Tensor& latents;              // [1, tokens, channels], packed, after the step
  const Tensor& velocity;             // the same shape: the step's prediction
  float level = 0;                    // noise level of `latents`
  Tensor clean() const;               // the clean film expected, packed
};

struct VideoSampleOptions {
  std::vector<float> levels;           // of flow_levels
  std::vector<GuidanceStep> guidance;  // one a step; for models with guidance embedding none
  size_t first_step = 0;               // to begin later, with latents at levels[first_step]
  bool skip = true;                    // leave out runs whose result would not count; the result is the same
  double embedded_guidance = 4;        // for models with guidance embedding
  std::function<void(const VideoStepReport&)> on_step;
};

struct VideoSampleInputs {
  Tensor latents;              // [1, tokens, in_channels] f32, packed: noise, or add_flow_noise
  VideoText prompt, negative;  // the negative one is not needed by models with guidance embedding
  VideoCondition condition;
  MmditPositions positions;
};

struct VideoSample {
  Tensor latents;        // clean, packed
  int64_t forwards = 0;  // runs of the model
};

// Denoises one film (or, with one latent frame, one picture). A model with guidance embedding runs once a step, as the
// reference runs Flux. Throws Error(model) when a prediction is not finite, Error(internal) on shapes.
VideoSample sample_film(VideoModel& model, const VideoSampleInputs& inputs, const VideoSampleOptions& options);

// Runs of the model that sample_film will need.
int64_t count_forwards(const MmditConfig& config, const VideoCondition& condition, const VideoSampleOptions& options);

// (1 - level)·latents + level·noise.
Tensor add_flow_noise(const Tensor& latents, const Tensor& noise, float level);

}  // namespace kinora
