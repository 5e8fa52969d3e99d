// What the files that make up Pipeline share.
#pragma once

#include "diffusion/pipeline.h"

namespace kinora {

// A request with every default filled in and every number checked.
struct Pipeline::Plan {
  int64_t width, height;          // of the picture that the model draws
  int64_t out_width, out_height;  // of the picture asked for
  int64_t batch, h, w, channels;  // latents
  size_t first_step = 0;
  double guidance = 0;
  bool guided = false;  // two model runs per step, by classifier-free guidance
  std::unique_ptr<Scheduler> scheduler;
  Conditioning positive, negative;
};

}  // namespace kinora
