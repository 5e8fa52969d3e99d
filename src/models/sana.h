// The denoiser of Sana, Sana-1.5 and Sana-Sprint: a diffusion transformer with linear attention
// ("SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers", arXiv:2410.10629).
// Tensor names are those of diffusers' SanaTransformer2DModel.
#pragma once

#include <optional>

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

struct SanaConfig {
  int64_t in_channels = 32, out_channels = 32;
  int64_t heads = 70, head_dim = 32, layers = 20;
  int64_t cross_heads = 20, cross_head_dim = 112;
  int64_t caption_channels = 2304;
  double mlp_ratio = 2.5;
  int64_t sample_size = 32, patch_size = 1;
  double norm_eps = 1e-6;
  std::optional<double> interpolation_scale;  // set: sine-cosine position embedding (2K, 4K)
  bool attention_bias = false;
  bool guidance_embeds = false;  // Sprint
  double guidance_embeds_scale = 0.1;
  bool qk_norm = false;       // "rms_norm_across_heads" (1.5, Sprint)
  double timestep_scale = 1;  // the pipeline multiplies the timestep by it
  // Checkpoints trained in float16 rely on linear attention's output being clamped to float16's range.
  bool fp16_clamp = false;

  int64_t width() const { return heads * head_dim; }
};

// Throws Error(model) for a value that is out of range or not supported.
SanaConfig read_sana_config(const Config& json);

struct SanaInputs {
  Value latents;   // [batch, height, width, in_channels], channels last
  Value timestep;  // [batch] f32
  Value guidance;  // [batch] f32, already multiplied by guidance_embeds_scale; only with guidance_embeds
  Value caption;   // [batch, tokens, caption_channels]
  Value mask;      // [batch, tokens] f32: 1 for a token, 0 for padding; or undefined
  Value lengths;   // [batch] i32: the tokens of each caption, at least one, all else is padding; or undefined
};

// Appends the model; returns its prediction [batch, height, width, out_channels] in the latents' type.
Value build_sana(const Params& params, const SanaConfig& config, const SanaInputs& inputs);

}  // namespace kinora
