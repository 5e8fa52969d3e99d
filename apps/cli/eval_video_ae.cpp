// kinora eval of the film autoencoders and of FLUX.1's: one run on tensors named and shaped as in Open-Sora's code.
#include "cli.h"
#include "diffusion/video_autoencoder.h"
#include "io/safetensors.h"

namespace kinora::cli {
namespace {

// A tensor of `rank` axes [batch, channels, ..] as channels last; undefined when it may be absent and is.
Tensor channels_last(const SafetensorsFile& in, const std::string& name, int rank, bool optional = false) {
  if (optional && !in.has(name)) return {};
  Tensor x = in.tensor(name);
  if (x.shape().rank() != rank || x.numel() == 0 || !is_float(x.dtype())) {
    fail(ErrorKind::input, "'" + name + "' must hold floating-point numbers of " + std::to_string(rank) +
                               " axes, not shape " + x.shape().str());
  }
  return rank == 5 ? x.to(DType::f32).permuted({0, 2, 3, 4, 1}) : x.to(DType::f32).permuted({0, 2, 3, 1});
}

// Item i of a batch of films: [frames, height, width, channels].
Tensor item(const Tensor& films, int64_t i) {
  const Shape& s = films.shape();
  return films.rows(i, i + 1).reshaped({s[1], s[2], s[3], s[4]});
}

Tensor run_films(VideoAutoencoder& ae, bool encode, const SafetensorsFile& in) {
  Tensor x = channels_last(in, encode ? "sample" : "latent", 5), noise = channels_last(in, "noise", 5, true);
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < x.shape()[0]; ++i) {
    Tensor one = item(x, i), random = encode && noise.defined() ? item(noise, i) : Tensor();
    Tensor y = encode ? ae.encode(one, random) : ae.decode(one);
    parts.push_back(y.reshaped({1, y.shape()[0], y.shape()[1], y.shape()[2], y.shape()[3]}));
  }
  return concat_rows(parts).permuted({0, 4, 1, 2, 3});
}

}  // namespace

bool is_video_ae(const std::string& component) {
  return component == "vae3d.encode" || component == "vae3d.decode" || component == "flux_ae.encode" ||
         component == "flux_ae.decode";
}

std::pair<std::string, Tensor> evaluate_video_ae(const std::string& model, const std::string& component,
                                                 const SafetensorsFile& in, const Runtime& runtime,
                                                 const VideoTileOptions& tiles) {
  bool films = component.starts_with("vae3d."), encode = component.ends_with(".encode");
  if (films) {
    VideoAutoencoder ae = load_video_autoencoder(model, runtime);
    if (tiles.size >= 0) ae.tiling.space = tiles.size > 0;
    if (tiles.size > 0) ae.tiling.size = tiles.size;
    if (tiles.frames >= 0) ae.tiling.time = tiles.frames > 0;
    if (tiles.frames > 0) ae.tiling.frames = tiles.frames;
    return {encode ? "latent" : "sample", run_films(ae, encode, in)};
  }
  FluxAutoencoder ae = load_flux_autoencoder(model, runtime);
  Tensor x = channels_last(in, encode ? "sample" : "latent", 4);
  Tensor y = encode ? ae.encode(x, channels_last(in, "noise", 4, true)) : ae.decode(x);
  return {encode ? "latent" : "sample", y.permuted({0, 3, 1, 2})};
}

}  // namespace kinora::cli
