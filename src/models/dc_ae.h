// The deep compression autoencoder ("Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models",
// arXiv:2410.10733). Tensor names are those of diffusers' AutoencoderDC. Pictures and latents are channels last.
#pragma once

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

// One side of the autoencoder, from the full resolution inwards.
struct DcAeSide {
  std::vector<std::string> block_types;  // "ResBlock" or "EfficientViTBlock"
  std::vector<int64_t> channels, layers;
  std::vector<std::vector<int64_t>> multiscales;  // kernel sizes of the attention's extra scales
  std::vector<std::string> norms, acts;
};

struct DcAeConfig {
  int64_t in_channels = 3, latent_channels = 32, head_dim = 32;
  DcAeSide encoder, decoder;
  bool pixel_shuffle_up = true;      // else nearest upsampling and a convolution
  bool pixel_unshuffle_down = true;  // else a convolution of stride 2
  bool encoder_out_shortcut = true, decoder_in_shortcut = true;
  std::string decoder_conv_act = "relu";
  double scaling_factor = 1;

  // Pixels per latent along one axis.
  int64_t compression() const { return int64_t{1} << (encoder.channels.size() - 1); }
};

// Throws Error(model) for a value that is out of range or not supported.
DcAeConfig read_dc_ae_config(const Config& json);

// picture [batch, H, W, 3] in [-1, 1] -> latents [batch, H/c, W/c, latent_channels], not scaled. H and W divide by c.
Value build_dc_ae_encoder(const Params& params, const DcAeConfig& config, Value picture);
// latents, not scaled -> picture, about [-1, 1].
Value build_dc_ae_decoder(const Params& params, const DcAeConfig& config, Value latents);

}  // namespace kinora
