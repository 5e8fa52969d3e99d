// From noise to latents: the loop over a sampler's steps, on the host or on a device.
#include <algorithm>
#include <cmath>

#include "diffusion/finite.h"
#include "diffusion/pipeline_plan.h"

namespace kinora {
namespace {

// Leaves out padding behind the last token of all captions: its weight in the attention is exactly zero.
void trim_padding(DenoiseInputs& in) {
  constexpr int64_t kMultiple = 16;    // few lengths, so that few graphs are compiled
  const Shape s = in.caption.shape();  // [batch, tokens, width]
  int64_t used = 1;
  for (int64_t i = 0; i < s[0] * s[1]; ++i) {
    if (in.mask.data<float>()[i] > 0) used = std::max(used, i % s[1] + 1);
  }
  int64_t keep = std::min(s[1], (used + kMultiple - 1) / kMultiple * kMultiple);
  Tensor caption({s[0], keep, s[2]}, DType::f32), mask({s[0], keep}, DType::f32);
  for (int64_t b = 0; b < s[0]; ++b) {
    std::copy_n(in.caption.data<float>() + b * s[1] * s[2], keep * s[2], caption.data<float>() + b * keep * s[2]);
    std::copy_n(in.mask.data<float>() + b * s[1], keep, mask.data<float>() + b * keep);
  }
  in.caption = caption;
  in.mask = mask;
}

}  // namespace

// Velocity of the flow, guided.
Tensor Pipeline::predict_flow(const Plan& p, const DenoiseInputs& inputs, const Tensor& latents, float t) {
  int64_t runs = p.guided ? 2 : 1;
  DenoiseInputs in = inputs;
  std::vector<Tensor> copies(static_cast<size_t>(runs), latents);
  in.latents = runs == 1 ? latents : concat_rows(copies);
  auto scale = static_cast<float>(denoiser_->config().timestep_scale);
  in.timestep = Tensor::from({p.batch * runs}, std::vector<float>(static_cast<size_t>(p.batch * runs), t * scale));
  Tensor v = denoiser_->predict(in);
  Tensor out(latents.shape(), DType::f32);
  int64_t c = p.channels, stored = v.shape()[3];  // a learned sigma, when there is one, follows and is not used
  for (int64_t i = 0; i < out.numel() / c; ++i) {
    const float* plain = v.data<float>() + i * stored;
    const float* prompted = plain + (p.guided ? v.numel() / 2 : 0);
    auto w = static_cast<float>(p.guidance);
    for (int64_t k = 0; k < c; ++k) {
      out.data<float>()[i * c + k] = p.guided ? plain[k] + w * (prompted[k] - plain[k]) : plain[k];
    }
  }
  return out;
}

// The TrigFlow prediction from a model that was trained on the flow: Sana-Sprint's change of variables.
Tensor Pipeline::predict_trigflow(const DenoiseInputs& inputs, const Tensor& latents, float t) {
  float tau = std::sin(t) / (std::cos(t) + std::sin(t)), norm = std::sqrt(tau * tau + (1 - tau) * (1 - tau));
  DenoiseInputs in = inputs;
  in.latents = Tensor(latents.shape(), DType::f32);
  for (int64_t i = 0; i < latents.numel(); ++i)
    in.latents.data<float>()[i] = latents.data<float>()[i] / kSigmaData * norm;
  int64_t batch = latents.shape()[0];
  auto scale = static_cast<float>(denoiser_->config().timestep_scale);
  in.timestep = Tensor::from({batch}, std::vector<float>(static_cast<size_t>(batch), tau * scale));
  Tensor f = denoiser_->predict(in);
  for (int64_t i = 0; i < f.numel(); ++i) {
    float& v = f.data<float>()[i];
    v = ((1 - 2 * tau) * in.latents.data<float>()[i] + (1 - 2 * tau + 2 * tau * tau) * v) / norm * kSigmaData;
  }
  return f;
}

Tensor Pipeline::denoise(const Request& r, const Plan& p, Tensor latents, std::vector<NoiseSource>& sources) {
  DenoiseInputs in;
  std::vector<Tensor> captions, masks;
  for (const Conditioning* c : {&p.negative, &p.positive}) {
    if (c == &p.negative && !p.guided) continue;
    captions.insert(captions.end(), static_cast<size_t>(p.batch), c->hidden);
    masks.insert(masks.end(), static_cast<size_t>(p.batch), c->mask);
  }
  in.caption = device_sampler_ ? runtime_.context.device->concat_rows(captions) : concat_rows(captions);
  in.mask = concat_rows(masks);
  bool step_by_step = !device_sampler_ || denoiser_->observed();
  if (in.caption.on_device() && step_by_step) in.caption = runtime_.context.device->to_host(in.caption);
  if (step_by_step) trim_padding(in);  // else one graph serves all prompts
  in.lengths = mask_lengths(in.mask);
  kinora::check(in.lengths.defined(), "a prompt's padding must stand behind its tokens");
  auto guidance = static_cast<float>(p.guidance) * static_cast<float>(denoiser_->config().guidance_embeds_scale);
  in.guidance = Tensor::from({p.batch}, std::vector<float>(static_cast<size_t>(p.batch), guidance));
  // Noise is drawn in torch's order and turned to channels last.
  NoiseSource noise = [&](const Shape& s) {
    std::vector<Tensor> parts;
    for (NoiseSource& source : sources) parts.push_back(source({1, s[3], s[1], s[2]}));
    return concat_rows(parts).permuted({0, 2, 3, 1});
  };
  if (!step_by_step) {
    in.latents = latents;
    return denoise_on_device(r, p, in, noise);
  }
  bool trigflow = p.scheduler->trigflow();
  size_t count = p.scheduler->steps();
  if (r.on_stage) r.on_stage({Stage::denoise, 0, static_cast<int64_t>(count - p.first_step)});
  for (size_t i = p.first_step; i < count; ++i) {
    float t = p.scheduler->timesteps()[i];
    Tensor output = trigflow ? predict_trigflow(in, latents, t) : predict_flow(p, in, latents, t);
    check_finite(output, "step " + std::to_string(i + 1) + " of the transformer");
    latents = p.scheduler->step(i, output, latents, noise);
    if (r.on_stage) {
      r.on_stage(
          {Stage::denoise, static_cast<int64_t>(i + 1 - p.first_step), static_cast<int64_t>(count - p.first_step)});
    }
    if (!r.on_step) continue;
    Tensor clean = p.scheduler->result(latents);
    r.on_step({static_cast<int64_t>(i + 1 - p.first_step), static_cast<int64_t>(count - p.first_step), &clean});
  }
  denoiser_->rest();
  if (!trigflow) return latents;
  Tensor result = p.scheduler->result(latents).clone();
  for (int64_t i = 0; i < result.numel(); ++i) result.data<float>()[i] /= kSigmaData;
  return result;
}

Tensor Pipeline::denoise_on_device(const Request& r, const Plan& p, const DenoiseInputs& in, const NoiseSource& noise) {
  bool trigflow = p.scheduler->trigflow();
  size_t count = p.scheduler->steps();
  auto steps = static_cast<int64_t>(count - p.first_step);
  DeviceLoop loop{.latents = in.latents,
                  .caption = in.caption,
                  .lengths = in.lengths,
                  .guidance = static_cast<float>(p.guidance),
                  .guided = p.guided,
                  .steps = {},
                  .noise = noise,
                  .on_step = {}};
  for (size_t i = p.first_step; i < count; ++i) loop.steps.push_back(p.scheduler->coefficients(i, i - p.first_step));
  if (r.on_stage) r.on_stage({Stage::denoise, 0, steps});
  if (r.on_step || r.on_stage) {
    loop.on_step = [&](size_t taken, const Tensor& latents, const Tensor& clean) {
      auto done = static_cast<int64_t>(taken);
      if (r.on_stage) r.on_stage({Stage::denoise, done, steps});
      if (r.on_step) r.on_step({done, steps, trigflow ? &clean : &latents});
    };
  }
  LoopResult result = device_sampler_->run(loop);
  Tensor latents = runtime_.context.device->to_host(trigflow ? result.clean : result.latents);
  denoiser_->rest();
  if (!is_finite(latents)) {
    for (const Conditioning* c : {&p.positive, &p.negative}) {
      if (c->hidden.defined()) check_finite(runtime_.context.device->to_host(c->hidden), "the text encoder");
    }
  }
  check_finite(latents, "the transformer");
  for (int64_t i = 0; trigflow && i < latents.numel(); ++i) latents.data<float>()[i] /= kSigmaData;
  return latents;
}

}  // namespace kinora
