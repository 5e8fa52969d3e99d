// What a film looks like while it is made: a few of its frames side by side, from the clean latents expected at a step,
// without its autoencoder. A linear map gives each latent the colour of the pixels that it stands for.
#pragma once

#include "diffusion/video_autoencoder.h"
#include "io/image.h"

namespace kinora {

class LatentColours {
 public:
  // Finds the map with the autoencoder: it encodes a picture of soft colours and one of flat ones, and least squares
  // tell how to get them back from its latents.
  static LatentColours fit(VideoAutoencoder& autoencoder);
  // The same for latents [.., C] and the colours [.., 3] of their pixels, in [-1, 1], both f32.
  static LatentColours fit(const Tensor& latents, const Tensor& colours);

  // latents [h, w, C] -> a picture of w x h pixels.
  Image picture(const Tensor& latents) const;

 private:
  std::vector<double> weights_;  // [C + 1, 3]; the last row is added
};

// Up to `count` frames of latents [t, h, w, C], evenly chosen with the first and the last, in a row, four pixels apart,
// each latent `scale` pixels wide and high.
Image preview_strip(const LatentColours& colours, const Tensor& latents, int64_t count = 5, int scale = 8);

}  // namespace kinora
