// The picture autoencoder of FLUX.1 (a KL autoencoder of latent diffusion, arXiv:2112.10752). Tensor names are those of
// flux1-dev-ae.safetensors. Pictures and latents are channels last.
#pragma once

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

struct FluxAeConfig {
  int64_t in_channels = 3, latent_channels = 16;
  std::vector<int64_t> channels{128, 256, 512, 512};  // from the full resolution inwards
  int64_t stem = 128;                                 // channels after the encoder's first convolution
  int64_t res_blocks = 2;                             // of a level of the encoder; one more in the decoder
  double scaling_factor = 0.3611, shift_factor = 0.1159;

  int64_t compression() const { return int64_t{1} << (channels.size() - 1); }
};

// Keys as in Open-Sora's config (ch, ch_mult, num_res_blocks, z_channels, scale_factor, shift_factor); what is absent
// has the published value. Throws Error(model).
FluxAeConfig read_flux_ae_config(const Config& json);

// picture [batch, H, W, 3] in [-1, 1] -> mean and log variance [batch, H/8, W/8, 2·latent_channels], not scaled.
Value build_flux_ae_encoder(const Params& params, const FluxAeConfig& config, Value picture);
// latents, not scaled -> picture, about [-1, 1].
Value build_flux_ae_decoder(const Params& params, const FluxAeConfig& config, Value latents);

}  // namespace kinora
