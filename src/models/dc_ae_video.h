// The deep compression autoencoder for films of Open-Sora 2.0's high compression model (4 x 32 x 32 pixels a latent).
// It extends DC-AE (arXiv:2410.10733, models/dc_ae.h) to three axes. Tensor names are those of
// F32T4C128_AE.safetensors. Films and latents are channels last: [batch, frames, height, width, channels]. It is not
// causal.
#pragma once

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

struct VideoDcAeConfig {
  int64_t in_channels = 3, latent_channels = 128, head_dim = 32;
  std::vector<int64_t> channels{128, 256, 512, 512, 1024, 1024};  // from the full resolution inwards
  std::vector<int64_t> encoder_layers{2, 2, 2, 3, 3, 3}, decoder_layers{3, 3, 3, 3, 3, 3};
  std::vector<bool> attention{false, false, false, true, true, true};  // EfficientViT blocks instead of residual ones
  std::vector<bool> halves_time{false, false, false, true, true, false};  // between a level and the next
  double scaling_factor = 1;                                              // latents are divided by it

  int64_t space_compression() const { return int64_t{1} << (channels.size() - 1); }
  int64_t time_compression() const;
};

// Keys: width_list, encoder_depth_list, decoder_depth_list, block_type ("ResBlock" or "EViTS5_GLU" a level),
// temporal_downsample, latent_channels, scaling_factor; what is absent has the published value. Throws Error(model).
VideoDcAeConfig read_video_dc_ae_config(const Config& json);

// film in [-1, 1], one frame or a multiple of 4 -> latents [batch, frames/4 (or 1), H/32, W/32, 128], not scaled.
Value build_video_dc_ae_encoder(const Params& params, const VideoDcAeConfig& config, Value film);
// latents, not scaled -> film, about [-1, 1]; one latent frame gives one frame.
Value build_video_dc_ae_decoder(const Params& params, const VideoDcAeConfig& config, Value latents);

}  // namespace kinora
