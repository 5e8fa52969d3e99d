// What the sampler of films asks of a transformer.
#pragma once

#include "core/tensor.h"
#include "models/mmdit.h"

namespace kinora {

struct VideoModelInputs {
  Tensor latents;   // [batch, tokens, in_channels] f32, packed (diffusion/video_latents.h)
  Tensor cond;      // [batch, tokens, cond_channels] f32, packed; only for models with cond_embed
  Tensor text;      // [batch, text tokens, text_dim] f32
  Tensor pooled;    // [batch, pooled_dim] f32
  Tensor timestep;  // [batch] f32, 1 is noise, 0 is clean
  Tensor guidance;  // [batch] f32; only for models with guidance_embed
  MmditPositions positions;
};

class VideoModel {
 public:
  virtual ~VideoModel() = default;
  virtual const MmditConfig& config() const = 0;
  virtual Tensor predict(const VideoModelInputs& inputs) = 0;  // the velocity [batch, tokens, in_channels] f32
};

}  // namespace kinora
