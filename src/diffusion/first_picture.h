// The picture that a film begins with, drawn from the film's text: by Flux, as the reference's text → picture → film
// does it, or by any Sana model.
#pragma once

#include <functional>
#include <string>

#include "diffusion/pipeline.h"
#include "diffusion/video_autoencoder.h"
#include "diffusion/video_denoiser.h"
#include "diffusion/video_sampler.h"

namespace kinora {

constexpr const char* kFluxResolution = "768px";

struct PictureRequest {
  std::string prompt;
  VideoText text;                 // the prompt as T5 and CLIP give it: for Flux
  int64_t width = 0, height = 0;  // of the film, whose ratio the picture has
  std::string resolution;         // of the picture: Npx, Np or WxH; empty: 768px for Flux, its own for a Sana model
  int64_t steps = 50;             // of Flux; a Sana model takes its own
  uint64_t seed = 0;
  bool cuda_noise = false;
  std::function<void(const StageReport&)> on_stage;
};

// True when the folder holds flux1-dev.safetensors: then it is Flux that draws, else a Sana model.
bool draws_with_flux(const std::string& folder);

// Throws Error(io) or Error(model) unless `folder` holds a model that draw_first_picture can use with texts of this
// width. Nothing is read but names and shapes.
void check_first_picture(const std::string& folder, int64_t text_dim, int64_t pooled_dim, const Runtime& runtime);

// Flux runs once a step, its guidance (4) being an input, on the noise levels of flow_shift for one frame; its
// transformer and flux1-dev-ae.safetensors are opened one after the other. `others` is for all but transformers;
// `max_memory` as LoadOptions has it. Throws as Pipeline::generate does.
Image draw_first_picture(const std::string& folder, const PictureRequest& request, const Runtime& runtime,
                         const Runtime& others, size_t max_memory = 0);

// What Flux's parts take for a request.
std::vector<ComponentMemory> flux_memory(const std::string& folder, const PictureRequest& request, int64_t text_tokens,
                                         const Runtime& runtime, const Runtime& others);

}  // namespace kinora
