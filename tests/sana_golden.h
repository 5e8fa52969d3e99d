// The inputs of Sana's transformer that a golden file holds.
#pragma once

#include "diffusion/components.h"
#include "golden.h"

namespace kinora::test {

inline DenoiseInputs sana_inputs(const Golden& golden, const SanaConfig& config) {
  DenoiseInputs in;
  in.latents = golden.channels_last("in.latents");
  in.timestep = golden.tensor("in.timestep");
  if (config.guidance_embeds) in.guidance = golden.tensor("in.guidance");
  in.caption = golden.tensor("in.caption");
  in.mask = golden.tensor("in.mask");
  in.lengths = mask_lengths(in.mask);
  return in;
}

}  // namespace kinora::test
