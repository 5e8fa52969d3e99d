#include "diffusion/first_picture.h"

#include <cmath>
#include <tuple>

#include "diffusion/finite.h"
#include "diffusion/video_latents.h"
#include "diffusion/video_size.h"

namespace kinora {
namespace {

constexpr double kFluxGuidance = 4;
constexpr const char* kAdvice = "a smaller --picture-resolution or --dtype bfloat16 needs less";

VideoDenoiser open_flux(const std::string& folder, const Runtime& runtime) {
  MmditFiles files = open_mmdit(folder, MmditRole::picture);
  return {files.config, std::move(files.weights), runtime};
}

void report(const PictureRequest& r, Stage stage, int64_t done, int64_t total) {
  if (r.on_stage) r.on_stage({stage, done, total});
}

VideoShape flux_shape(const PictureRequest& r, const FluxAeConfig& ae, int64_t patch) {
  VideoLayout layout{ae.latent_channels, 4, ae.compression(), patch, true};
  auto [width, height] =
      size_like(r.resolution.empty() ? kFluxResolution : r.resolution, r.width, r.height, layout.cell());
  return video_shape(layout, width, height, 1);
}

Tensor sample_flux(VideoDenoiser& flux, const PictureRequest& r, const VideoShape& shape) {
  VideoSampleInputs in;
  in.latents =
      pack_latents(video_noise(shape, r.seed, r.cuda_noise ? NoiseKind::cuda : NoiseKind::cpu), shape.layout.patch);
  in.prompt = r.text;
  in.positions = MmditPositions::grid(1, shape.rows(), shape.columns());
  VideoSampleOptions options;
  options.levels = flow_levels(r.steps, flow_shift(shape.tokens_per_frame(), 1));
  options.embedded_guidance = kFluxGuidance;
  options.on_step = [&](const VideoStepReport& step) { report(r, Stage::denoise, step.step, step.steps); };
  report(r, Stage::denoise, 0, r.steps);
  return unpack_latents(sample_film(flux, in, options).latents, shape);
}

Image draw_with_flux(const std::string& folder, const PictureRequest& r, Runtime runtime, Runtime others,
                     size_t max_memory) {
  FluxAeConfig ae = load_flux_autoencoder(folder, others).config();
  if (max_memory) {
    std::vector<ComponentMemory> parts = flux_memory(folder, r, r.text.hidden.shape()[1], runtime, others);
    runtime.context.stream.budget = weights_budget(parts[0], max_memory, runtime, kAdvice);
    others.context.stream.budget = weights_budget(parts[1], max_memory, others, kAdvice);
  }
  Tensor latents;
  {
    VideoDenoiser flux = open_flux(folder, runtime);
    latents = sample_flux(flux, r, flux_shape(r, ae, flux.config().patch_size));
  }
  runtime.context.arena->release();
  report(r, Stage::decode, 0, 1);
  const Shape& s = latents.shape();
  Tensor picture = load_flux_autoencoder(folder, others).decode(latents.reshaped({1, s[2], s[3], s[4]}));
  runtime.context.arena->release();
  check_finite(picture, "Flux's autoencoder");
  report(r, Stage::decode, 1, 1);
  return to_image(picture);
}

// At the size of the film's shape that the model was trained for.
Image draw_with_sana(const std::string& folder, const PictureRequest& r, const Runtime& runtime, size_t max_memory) {
  Request request;
  Pipeline pipeline = Pipeline::open(folder, "", runtime, max_memory);
  const ModelDefaults& d = pipeline.defaults();
  if (!r.resolution.empty() || !d.use_resolution_binning) {
    std::string own = std::to_string(std::llround(std::sqrt(static_cast<double>(d.width * d.height)))) + "px";
    int64_t cell = pipeline.autoencoder().config().compression() * pipeline.denoiser().config().patch_size;
    std::tie(request.width, request.height) =
        size_like(r.resolution.empty() ? own : r.resolution, r.width, r.height, cell);
  } else {
    std::tie(request.width, request.height) = nearest_bin(r.width, r.height, pipeline.denoiser().config().sample_size);
  }
  request.prompt = r.prompt;
  request.seeds = {r.seed};
  request.cuda_noise = r.cuda_noise;
  request.on_stage = r.on_stage;
  Image picture = pipeline.generate(request).images.at(0);
  runtime.context.arena->release();
  return picture;
}

}  // namespace

bool draws_with_flux(const std::string& folder) { return has_mmdit(folder, MmditRole::picture); }

void check_first_picture(const std::string& folder, int64_t text_dim, int64_t pooled_dim, const Runtime& runtime) {
  if (!draws_with_flux(folder)) {
    Pipeline::open(folder, "", runtime);
    return;
  }
  VideoDenoiser flux = open_flux(folder, runtime);
  FluxAutoencoder ae = load_flux_autoencoder(folder, runtime);
  const MmditConfig& c = flux.config();
  auto expect = [&](bool fits, const std::string& what) {
    if (!fits) fail(ErrorKind::model, folder + ": " + what);
  };
  expect(c.guidance_embed && !c.cond_embed, flux.weights().source() + " is no transformer of FLUX.1-dev (guidance_in)");
  expect(c.text_dim == text_dim && c.pooled_dim == pooled_dim,
         "Flux's transformer reads texts of other encoders than the film's");
  expect(c.latent_channels() == ae.config().latent_channels,
         "Flux's transformer and its autoencoder differ in latent channels");
}

Image draw_first_picture(const std::string& folder, const PictureRequest& request, const Runtime& runtime,
                         const Runtime& others, size_t max_memory) {
  return draws_with_flux(folder) ? draw_with_flux(folder, request, runtime, others, max_memory)
                                 : draw_with_sana(folder, request, runtime, max_memory);
}

std::vector<ComponentMemory> flux_memory(const std::string& folder, const PictureRequest& r, int64_t text_tokens,
                                         const Runtime& runtime, const Runtime& others) {
  VideoDenoiser flux = open_flux(folder, runtime);
  FluxAutoencoder ae = load_flux_autoencoder(folder, others);
  VideoShape shape = flux_shape(r, ae.config(), flux.config().patch_size);
  Graph transformer = flux.graph({1, 1, shape.rows(), shape.columns(), text_tokens});
  Graph decoder = ae.graph(false, {1, shape.latent_height, shape.latent_width, shape.layout.channels});
  auto floats = static_cast<size_t>(shape.width * shape.height) * 3 * 4;
  return {{"Flux's transformer", memory_need(transformer, *runtime.backend, runtime.context), 0},
          {"Flux's autoencoder", memory_need(decoder, *others.backend, others.context), 2 * floats}};
}

}  // namespace kinora
