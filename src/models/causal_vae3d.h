// The causal 3D autoencoder of HunyuanVideo ("HunyuanVideo: A Systematic Framework For Large Video Generative Models",
// arXiv:2412.03603) as Open-Sora 2.0 runs it. Tensor names are those of hunyuan_vae.safetensors, which are also those
// of diffusers' AutoencoderKLHunyuanVideo. Films and latents are channels last: [batch, frames, height, width,
// channels].
//
// Convolutions and attention look at no later frame. Group norms take their statistics over all frames of what they are
// given, so a film and its beginning do not give the same first frames to the last bit.
#pragma once

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

struct CausalVae3dConfig {
  int64_t in_channels = 3, out_channels = 3, latent_channels = 16;
  std::vector<int64_t> channels{128, 256, 512, 512};  // from the full resolution inwards
  int64_t layers_per_block = 2;                       // one more in the decoder
  int64_t norm_groups = 32;
  bool mid_attention = true;
  int64_t time_compression = 4, space_compression = 8;
  double scaling_factor = 0.476986, shift_factor = 0;

  // Whether level i halves the picture, and the number of frames.
  bool halves_space(size_t level) const { return (int64_t{1} << level) < space_compression; }
  bool halves_time(size_t level) const;
};

// Keys as in Open-Sora's config (scale_factor, time_compression_ratio) or diffusers' (scaling_factor,
// temporal_compression_ratio); what is absent has the published value. Throws Error(model).
CausalVae3dConfig read_causal_vae3d_config(const Config& json);

// film in [-1, 1], frames 4k + 1 -> mean and log variance [batch, k + 1, H/8, W/8, 2·latent_channels] of the latents,
// not scaled (the ratios are the config's).
Value build_causal_vae3d_encoder(const Params& params, const CausalVae3dConfig& config, Value film);
// latents, not scaled -> film, about [-1, 1]; k + 1 latent frames give 4k + 1.
Value build_causal_vae3d_decoder(const Params& params, const CausalVae3dConfig& config, Value latents);

}  // namespace kinora
