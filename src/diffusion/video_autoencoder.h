// The networks between pixels and latents that film models use, each compiled for the shapes it meets: the autoencoders
// of films, which decode frame by frame to whoever takes them, and FLUX.1's autoencoder of pictures.
#pragma once

#include <variant>

#include "diffusion/components.h"
#include "diffusion/memory_limit.h"
#include "models/causal_vae3d.h"
#include "models/dc_ae_video.h"
#include "models/flux_ae.h"

namespace kinora {

// z = mean + exp(clamp(log variance, -30, 20) / 2) · noise, or the mean when there is no noise.
// moments [.., 2C] f32, mean first; noise [.., C] f32.
Tensor sample_posterior(const Tensor& moments, const Tensor& noise = {});

struct VideoTiling {
  bool space = true;      // tiles of pictures larger than `size`
  bool time = false;      // tiles of films longer than `frames`
  int64_t size = 256;     // pixels
  int64_t frames = 64;    // a causal model's tiles have one frame more
  double overlap = 0.25;  // of a tile, in [0, 0.5]
};

// Takes the next frames [n, H, W, 3] f32, about [-1, 1], n > 0.
using FrameSink = std::function<void(const Tensor& frames)>;
// Tiles done, of how many.
using TileProgress = std::function<void(int64_t done, int64_t total)>;

class VideoAutoencoder {
 public:
  using Model = std::variant<CausalVae3dConfig, VideoDcAeConfig>;

  // Checks the names and shapes of all weights. The tiling begins as Open-Sora's inference has it.
  VideoAutoencoder(Model model, Weights weights, Runtime runtime);

  // film [frames, H, W, 3] f32 in [-1, 1] -> latents [t, h, w, C] f32, scaled. `noise`, of the latents' shape, makes
  // them a sample of the posterior; without it, or with a deterministic model, they are its mode. Throws Error(usage)
  // for a number of frames or a size that the model cannot encode.
  Tensor encode(const Tensor& film, const Tensor& noise = {});
  // latents [t, h, w, C] f32, scaled -> film_frames(t) frames, in order. With tiles in time a part is given out as soon
  // as it is done, and no more than a tile is held; without, the norms need all frames and they are given out together.
  void decode(const Tensor& latents, const FrameSink& sink, const TileProgress& progress = {});
  Tensor decode(const Tensor& latents);  // all frames [frames, H, W, 3]

  bool causal() const { return std::holds_alternative<CausalVae3dConfig>(model_); }
  int64_t latent_channels() const;
  int64_t time_compression() const;
  int64_t space_compression() const;
  int64_t latent_frames(int64_t frames) const;
  int64_t film_frames(int64_t latent_frames) const;
  // Throws Error(usage) that says what fits when the model cannot make such a film.
  void check_size(int64_t frames, int64_t height, int64_t width) const;

  VideoTiling tiling;
  VideoTiling usual_tiling() const;  // Open-Sora's, where `tiling` begins
  const Weights& weights() const { return weights_; }
  Graph graph(bool encoder, const Shape& input) const;  // input [frames, H, W, channels]
  size_t memory(bool encoder, const Shape& input);      // bytes of activations when compiled
  // Of the largest of the tiles that `input` is cut into; what is beside it on the host: films of one stretch.
  ComponentMemory need(bool encoder, const Shape& input) const;

 private:
  struct TimeTiles;
  const Executable& compiled(bool encoder, const Shape& input);
  std::function<Tensor()> begin(bool encoder, const Tensor& input);
  Tensor run_in_space(bool encoder, const Tensor& input, const std::function<void()>& tile_done);
  void run_in_time(bool encoder, const Tensor& input, const FrameSink& sink, const TileProgress& progress);

  Model model_;
  Weights weights_;
  Runtime runtime_;
  ExecutableCache cache_{8};
};

// Finds the film autoencoder in a folder of published files (hunyuan_vae.safetensors, F32T4C128_AE.safetensors), in the
// "vae" of a folder in diffusers' layout, or in a file of its own, by the names of its tensors. A config.json beside
// the weights gives the sizes; without one they are the published ones. Throws Error(io) or Error(model).
VideoAutoencoder load_video_autoencoder(const std::string& path, Runtime runtime);

class FluxAutoencoder {
 public:
  FluxAutoencoder(FluxAeConfig config, Weights weights, Runtime runtime);
  // picture [batch, H, W, 3] f32 in [-1, 1] -> latents [batch, H/8, W/8, C] f32, scaled and shifted; noise as above.
  Tensor encode(const Tensor& picture, const Tensor& noise = {});
  // latents, scaled and shifted -> picture.
  Tensor decode(const Tensor& latents);
  const FluxAeConfig& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  Graph graph(bool encoder, const Shape& input) const;

 private:
  Tensor run(bool encoder, const Tensor& input);
  FluxAeConfig config_;
  Weights weights_;
  Runtime runtime_;
  ExecutableCache cache_;
};

// flux1-dev-ae.safetensors, in a folder or by itself.
FluxAutoencoder load_flux_autoencoder(const std::string& path, Runtime runtime);

}  // namespace kinora
