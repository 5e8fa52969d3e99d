// Goldens of Sana's networks: the transformer's inputs, and what the others must give on any device.
#pragma once

#include "diffusion/components.h"
#include "golden.h"
#include "support.h"

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

// One item of a batch.
inline DenoiseInputs item_of(const DenoiseInputs& all, int64_t i) {
  DenoiseInputs one = all;
  for (Tensor* tensor : {&one.latents, &one.timestep, &one.guidance, &one.caption, &one.mask, &one.lengths}) {
    if (tensor->defined()) *tensor = tensor->rows(i, i + 1);
  }
  return one;
}

inline void expect_dc_ae_golden(const std::string& name, const Runtime& runtime) {
  Golden golden(name);
  Autoencoder model(read_dc_ae_config(golden.config), golden.weights, runtime);
  std::optional<Tiling> tiling;
  if (golden.config.has("tile")) {
    int64_t tile = golden.config.integer("tile", 1, 4096);
    tiling = Tiling{tile, tile * 3 / 4};
  }
  expect_close(model.encode(golden.channels_last("in.picture"), tiling), golden.channels_last("out.latents"),
               DType::f32, kModelTerms, name + " encode");
  expect_close(model.decode(golden.channels_last("in.latents"), tiling), golden.channels_last("out.picture"),
               DType::f32, kModelTerms, name + " decode");
}

// Of hidden states where there is a token.
inline void expect_gemma2_golden(const std::string& name, const Runtime& runtime) {
  Golden golden(name);
  TextEncoder model(read_gemma2_config(golden.config), golden.weights, runtime);
  Tensor mask = golden.tensor("in.mask"), hidden = model.encode(golden.tensor("in.ids"), mask);
  int64_t width = hidden.shape()[2];
  for (int64_t i = 0; i < hidden.numel(); ++i) hidden.data<float>()[i] *= mask.data<float>()[i / width];
  expect_close(hidden, golden.tensor("out.hidden"), DType::f32, kModelTerms, name);
}

}  // namespace kinora::test
