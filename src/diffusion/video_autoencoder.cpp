#include "diffusion/video_autoencoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "diffusion/tiling.h"
#include "io/safetensors.h"
#include "ops/elementwise.h"

namespace kinora {
namespace {

Tensor scaled(const Tensor& x, double scale, double shift) {
  Tensor y(x.shape(), DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i)
    y.data<float>()[i] = static_cast<float>(static_cast<double>(x.data<float>()[i]) * scale + shift);
  return y;
}

Value build(const CausalVae3dConfig& c, const Params& params, bool encoder, Value x) {
  return encoder ? build_causal_vae3d_encoder(params, c, x) : build_causal_vae3d_decoder(params, c, x);
}
Value build(const VideoDcAeConfig& c, const Params& params, bool encoder, Value x) {
  return encoder ? build_video_dc_ae_encoder(params, c, x) : build_video_dc_ae_decoder(params, c, x);
}

std::string str(int64_t n) { return std::to_string(n); }

}  // namespace

Tensor sample_posterior(const Tensor& moments, const Tensor& noise) {
  int64_t channels = moments.shape()[-1] / 2, rows = moments.numel() / std::max<int64_t>(1, 2 * channels);
  Tensor z(moments.shape().with(-1, channels), DType::f32);
  if (noise.defined() && !(noise.shape() == z.shape())) {
    fail(ErrorKind::usage, "noise for latents of shape " + z.shape().str() + " has shape " + noise.shape().str());
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float *mean = moments.data<float>() + r * 2 * channels, *log_variance = mean + channels;
    float* out = z.data<float>() + r * channels;
    for (int64_t c = 0; c < channels; ++c) {
      out[c] = mean[c];
      if (noise.defined())
        out[c] += std::exp(0.5f * std::clamp(log_variance[c], -30.0f, 20.0f)) * noise.data<float>()[r * channels + c];
    }
  }
  return z;
}

VideoAutoencoder::VideoAutoencoder(Model model, Weights weights, Runtime runtime)
    : model_(std::move(model)), weights_(std::move(weights)), runtime_(std::move(runtime)) {
  Graph probe;
  Params params(probe, weights_);
  int64_t side = space_compression();
  std::visit(
      [&](const auto& c) {
        build(c, params, true, probe.input("film", {1, 1, side, side, c.in_channels}));
        build(c, params, false, probe.input("latents", {1, 1, 1, 1, c.latent_channels}));
      },
      model_);
  params.expect_all_used();
  tiling = usual_tiling();
}

VideoTiling VideoAutoencoder::usual_tiling() const {
  if (causal()) return {};
  return {.space = true, .time = true, .size = 256, .frames = 32, .overlap = 0.25};
}

int64_t VideoAutoencoder::latent_channels() const {
  return std::visit([](const auto& c) { return c.latent_channels; }, model_);
}
int64_t VideoAutoencoder::time_compression() const {
  if (const auto* c = std::get_if<CausalVae3dConfig>(&model_)) return c->time_compression;
  return std::get<VideoDcAeConfig>(model_).time_compression();
}
int64_t VideoAutoencoder::space_compression() const {
  if (const auto* c = std::get_if<CausalVae3dConfig>(&model_)) return c->space_compression;
  return std::get<VideoDcAeConfig>(model_).space_compression();
}
int64_t VideoAutoencoder::latent_frames(int64_t frames) const { return (frames - 1) / time_compression() + 1; }
int64_t VideoAutoencoder::film_frames(int64_t latents) const {
  if (causal()) return (latents - 1) * time_compression() + 1;
  return latents == 1 ? 1 : latents * time_compression();
}

void VideoAutoencoder::check_size(int64_t frames, int64_t height, int64_t width) const {
  int64_t ratio = space_compression(), time = time_compression();
  auto near = [](int64_t value, int64_t step) { return std::max(step, (value + step / 2) / step * step); };
  if (height < 1 || width < 1 || height % ratio != 0 || width % ratio != 0) {
    fail(ErrorKind::usage, "this model cannot make films of " + str(width) + "x" + str(height) +
                               " pixels: both must be multiples of " + str(ratio) + "; the nearest is " +
                               str(near(width, ratio)) + "x" + str(near(height, ratio)));
  }
  if (frames >= 1 && (frames == 1 || frames % time == (causal() ? 1 : 0))) return;
  int64_t above = causal() ? std::max<int64_t>(0, frames + time - 2) / time * time + 1
                           : std::max<int64_t>(frames + time - 1, time) / time * time;
  int64_t below = std::max<int64_t>(1, above - time);
  fail(ErrorKind::usage, "this model cannot make films of " + str(frames) + " frames: the nearest are " + str(below) +
                             " and " + str(above) + " (" + (causal() ? "one more than " : "") + "a multiple of " +
                             str(time) + (causal() ? "" : ", or 1") + ")");
}

Graph VideoAutoencoder::graph(bool encoder, const Shape& s) const {
  return autoencoder_graph({1, s[0], s[1], s[2], s[3]}, weights_, runtime_.dtype, [&](const Params& params, Value x) {
    return std::visit([&](const auto& c) { return build(c, params, encoder, x); }, model_);
  });
}

const Executable& VideoAutoencoder::compiled(bool encoder, const Shape& s) {
  return cache_.get({encoder, s[0], s[1], s[2]}, runtime_, [&] {
    if (runtime_.context.device) runtime_.context.device->wait();  // one that has to go may be at work
    return graph(encoder, s);
  });
}

size_t VideoAutoencoder::memory(bool encoder, const Shape& input) { return compiled(encoder, input).arena_bytes(); }

// A device is at work when this returns; the host is when the result is asked for.
Pending VideoAutoencoder::begin(bool encoder, const Tensor& x) {
  auto run = [this, encoder, x](Keep keep) {
    const Shape& s = x.shape();
    Tensor y = compiled(encoder, s).run({{"x", x.reshaped({1, s[0], s[1], s[2], s[3]})}}, keep).at("y");
    return y.reshaped({y.shape()[1], y.shape()[2], y.shape()[3], y.shape()[4]});
  };
  Device* device = runtime_.context.device.get();
  if (!device) return [run] { return run(Keep::on_host); };
  Tensor y = run(Keep::on_device);
  return [device, y, mark = std::shared_ptr(device->mark())] { return device->to_host_after(*mark, y); };
}

// One stretch of frames, in tiles of pictures where it is large.
Tensor VideoAutoencoder::run_in_space(bool encoder, const Tensor& x, const std::function<void()>& tile_done) {
  int64_t ratio = space_compression(), pixels = tiling.size, latents = tiling.size / ratio;
  int64_t size = encoder ? pixels : latents, out_size = encoder ? latents : pixels;
  const Shape& s = x.shape();
  auto one = [&](const Tensor& tile) -> Pending {
    return [&, wait = begin(encoder, tile)] {
      Tensor y = wait();
      tile_done();
      return y;
    };
  };
  if (!tiling.space || (s[1] <= size && s[2] <= size)) return one(x)();
  auto part = [&](int64_t whole) { return static_cast<int64_t>(static_cast<double>(whole) * (1 - tiling.overlap)); };
  int64_t out_stride = out_size - static_cast<int64_t>(static_cast<double>(out_size) * tiling.overlap);
  auto out = [&](int64_t extent) { return encoder ? extent / ratio : extent * ratio; };
  return run_tiled_ahead(x, {size, part(size), out_size, out_stride, out(s[1]), out(s[2]), 1}, one);
}

// The stretches of frames that are run by themselves, and what of each is kept.
struct VideoAutoencoder::TimeTiles {
  struct Stretch {
    int64_t begin, end;  // of the input
    int64_t skip;        // first frames of the output that are dropped
    int64_t keep;        // frames of the rest that are given out
  };
  std::vector<Stretch> stretches;
  int64_t fade = 0;  // frames of the output

  TimeTiles(const VideoAutoencoder& ae, bool encoder, int64_t frames) {
    const VideoTiling& t = ae.tiling;
    int64_t ratio = ae.time_compression(), size = encoder ? t.frames : t.frames / ratio;
    int64_t out_size = encoder ? t.frames / ratio : t.frames, more = ae.causal() ? 1 : 0;
    if (!t.time || frames <= size) {
      stretches.push_back({0, frames, 0, INT64_MAX});
      return;
    }
    auto stride = static_cast<int64_t>(static_cast<double>(size) * (1 - t.overlap));
    fade = static_cast<int64_t>(static_cast<double>(out_size) * t.overlap);
    for (int64_t begin = 0; begin < frames; begin += stride) {
      int64_t extra = begin > 0 ? 0 : more;
      // A last stretch of one frame adds nothing: a causal model's is dropped, and another's would come out as a
      // picture.
      if (begin > 0 && begin + 1 == frames) {
        stretches.back().keep = INT64_MAX;
        break;
      }
      stretches.push_back(
          {begin, std::min(frames, begin + size + more), begin > 0 ? more : 0, out_size - fade + extra});
    }
  }
};

ComponentMemory VideoAutoencoder::need(bool encoder, const Shape& s) const {
  int64_t frames = 0, size = encoder ? tiling.size : tiling.size / space_compression();
  for (const TimeTiles::Stretch& t : TimeTiles(*this, encoder, s[0]).stretches)
    frames = std::max(frames, t.end - t.begin);
  bool tiled = tiling.space && (s[1] > size || s[2] > size);
  Shape tile{frames, tiled ? std::min(size, s[1]) : s[1], tiled ? std::min(size, s[2]) : s[2], s[3]};
  int64_t ratio = encoder ? 1 : space_compression();
  int64_t pixels = (encoder ? frames : film_frames(frames)) * s[1] * ratio * s[2] * ratio;
  ComponentMemory need{.name = encoder ? "the autoencoder, encoding" : "the autoencoder, decoding",
                       .need = memory_need(graph(encoder, tile), *runtime_.backend, runtime_.context)};
  need.beside = static_cast<size_t>(pixels) * 3 * 4 * 2;
  return need;
}

void VideoAutoencoder::run_in_time(bool encoder, const Tensor& x, const FrameSink& sink, const TileProgress& progress) {
  int64_t ratio = encoder ? 1 : space_compression();
  auto fits = [&](int64_t extent, int64_t step) {
    double shared = static_cast<double>(extent / step) * tiling.overlap;  // latents
    return extent >= step && extent % step == 0 && tiling.overlap >= 0 && tiling.overlap <= 0.5 &&
           shared == std::floor(shared);
  };
  if ((tiling.space && !fits(tiling.size, space_compression())) ||
      (tiling.time && !fits(tiling.frames, time_compression()))) {
    fail(ErrorKind::usage, "tiles of " + str(tiling.size) + " pixels and " + str(tiling.frames) +
                               " frames do not fit this model: they must be multiples of " + str(space_compression()) +
                               " and " + str(time_compression()) +
                               ", and what they share at most a half, in whole latents");
  }
  TimeTiles tiles(*this, encoder, x.shape()[0]);
  const Shape& s = x.shape();
  int64_t done = 0, per_stretch = 1, height = s[1] * ratio, width = s[2] * ratio;
  if (tiling.space && (height > tiling.size || width > tiling.size)) {
    auto stride = static_cast<int64_t>(static_cast<double>(tiling.size / space_compression()) * (1 - tiling.overlap));
    per_stretch = tile_count(height / space_compression(), width / space_compression(), stride);
  }
  auto total = static_cast<int64_t>(tiles.stretches.size()) * per_stretch;
  auto tile_done = [&] {
    if (progress) progress(++done, total);
  };
  Tensor last;  // the end of the stretch before, which fades into the next
  for (const TimeTiles::Stretch& t : tiles.stretches) {
    Tensor y = run_in_space(encoder, x.rows(t.begin, t.end), tile_done);
    y = y.rows(t.skip, y.shape()[0]);
    if (last.defined()) cross_fade(last, y, 0, tiles.fade);
    int64_t frames = y.shape()[0], keep = std::min(frames, t.keep);
    if (keep > 0) sink(y.rows(0, keep));
    last = y.rows(frames - std::min(frames, tiles.fade), frames).clone();
  }
}

Tensor VideoAutoencoder::encode(const Tensor& film, const Tensor& noise) {
  const Shape& s = film.shape();
  int64_t channels = std::visit([](const auto& c) { return c.in_channels; }, model_);
  if (s.rank() != 4 || s[3] != channels) {
    fail(ErrorKind::input, "a film of shape " + s.str() + " does not fit this model: [frames, height, width, " +
                               str(channels) + "] is needed");
  }
  check_size(s[0], s[1], s[2]);
  std::vector<Tensor> parts;
  run_in_time(true, film, [&](const Tensor& latents) { parts.push_back(latents); }, {});
  Tensor all = concat_rows(parts);
  if (const auto* c = std::get_if<CausalVae3dConfig>(&model_)) {
    return scaled(sample_posterior(all, noise), c->scaling_factor, -c->shift_factor * c->scaling_factor);
  }
  return scaled(all, 1 / std::get<VideoDcAeConfig>(model_).scaling_factor, 0);
}

void VideoAutoencoder::decode(const Tensor& latents, const FrameSink& sink, const TileProgress& progress) {
  const Shape& s = latents.shape();
  if (s.rank() != 4 || s.numel() == 0 || s[3] != latent_channels()) {
    fail(ErrorKind::input, "latents of shape " + s.str() + " do not fit this model: [frames, height, width, " +
                               str(latent_channels()) + "] is needed");
  }
  Tensor z;
  if (const auto* c = std::get_if<CausalVae3dConfig>(&model_)) {
    z = scaled(latents, 1 / c->scaling_factor, c->shift_factor);
  } else {
    z = scaled(latents, std::get<VideoDcAeConfig>(model_).scaling_factor, 0);
  }
  run_in_time(false, z, sink, progress);
}

Tensor VideoAutoencoder::decode(const Tensor& latents) {
  std::vector<Tensor> parts;
  decode(latents, [&](const Tensor& frames) { parts.push_back(frames.clone()); });
  return parts.size() == 1 ? parts[0] : concat_rows(parts);
}

FluxAutoencoder::FluxAutoencoder(FluxAeConfig config, Weights weights, Runtime runtime)
    : config_(std::move(config)), weights_(std::move(weights)), runtime_(std::move(runtime)) {
  Graph probe;
  Params params(probe, weights_);
  int64_t side = config_.compression();
  build_flux_ae_encoder(params, config_, probe.input("picture", {1, side, side, config_.in_channels}));
  build_flux_ae_decoder(params, config_, probe.input("latents", {1, 1, 1, config_.latent_channels}));
  params.expect_all_used();
}

Graph FluxAutoencoder::graph(bool encoder, const Shape& input) const {
  auto build_half = encoder ? build_flux_ae_encoder : build_flux_ae_decoder;
  return autoencoder_graph(input, weights_, runtime_.dtype,
                           [&](const Params& params, Value x) { return build_half(params, config_, x); });
}

Tensor FluxAutoencoder::run(bool encoder, const Tensor& input) {
  return run_each(input, [&](const Tensor& one) {
    const Shape& s = one.shape();
    return cache_.get({encoder, s[1], s[2]}, runtime_, [&] { return graph(encoder, s); }).run({{"x", one}}).at("y");
  });
}

Tensor FluxAutoencoder::encode(const Tensor& picture, const Tensor& noise) {
  const Shape& s = picture.shape();
  int64_t ratio = config_.compression();
  if (s.rank() != 4 || s.numel() == 0 || s[1] % ratio != 0 || s[2] % ratio != 0 || s[3] != config_.in_channels) {
    fail(ErrorKind::usage, "a picture of shape " + s.str() + " cannot be encoded: [batch, height, width, " +
                               str(config_.in_channels) + "] is needed, the sides multiples of " + str(ratio));
  }
  Tensor z = sample_posterior(run(true, picture), noise);
  return scaled(z, config_.scaling_factor, -config_.shift_factor * config_.scaling_factor);
}

Tensor FluxAutoencoder::decode(const Tensor& latents) {
  const Shape& s = latents.shape();
  if (s.rank() != 4 || s.numel() == 0 || s[3] != config_.latent_channels) {
    fail(ErrorKind::input, "latents of shape " + s.str() + " do not fit this model: [batch, height, width, " +
                               str(config_.latent_channels) + "] is needed");
  }
  return run(false, scaled(latents, 1 / config_.scaling_factor, config_.shift_factor));
}

namespace {

namespace fs = std::filesystem;

Weights read_weights(const std::string& path) {
  SafetensorsFile file = SafetensorsFile::open(path);
  Weights weights;
  for (const SafetensorsEntry& entry : file.header().entries) weights.add(entry.name, file.tensor(entry), path);
  weights.set_source(path);
  return weights;
}

// The path itself when it is a file, else the first of `names` in the folder; empty when there is none.
std::string find_file(const std::string& path, std::initializer_list<const char*> names) {
  std::error_code ignored;
  if (!fs::is_directory(path, ignored)) return path;
  for (const char* name : names) {
    if (fs::exists(fs::path(path) / name, ignored)) return (fs::path(path) / name).string();
  }
  return "";
}

// <name>.json beside a single file, config.json in diffusers' layout; the published single files have neither and are
// of the published sizes.
Config config_beside(const std::string& file) {
  fs::path path(file), own = fs::path(file).replace_extension(".json"), shared = path.parent_path() / "config.json";
  std::error_code ignored;
  if (fs::exists(own, ignored)) return Config::load(own.string());
  bool diffusers = path.filename() == "diffusion_pytorch_model.safetensors" && fs::exists(shared, ignored);
  return diffusers ? Config::load(shared.string()) : Config::parse("{}", file);
}

}  // namespace

VideoAutoencoder load_video_autoencoder(const std::string& path, Runtime runtime) {
  std::string file =
      find_file(path, {"hunyuan_vae.safetensors", "F32T4C128_AE.safetensors", "vae/diffusion_pytorch_model.safetensors",
                       "diffusion_pytorch_model.safetensors"});
  if (file.empty())
    fail(ErrorKind::model, path +
                               " holds no film autoencoder (hunyuan_vae.safetensors, F32T4C128_AE.safetensors or "
                               "vae/diffusion_pytorch_model.safetensors)");
  Weights weights = read_weights(file);
  Config config = config_beside(file);
  if (weights.find("encoder.project_in.conv.weight"))
    return VideoAutoencoder(read_video_dc_ae_config(config), std::move(weights), std::move(runtime));
  if (weights.find("quant_conv.weight") && weights.find("encoder.conv_in.conv.weight"))
    return VideoAutoencoder(read_causal_vae3d_config(config), std::move(weights), std::move(runtime));
  fail(ErrorKind::model, file +
                             " holds no film autoencoder: neither HunyuanVideo's tensors (encoder.conv_in.conv.weight) "
                             "nor DC-AE's (encoder.project_in.conv.weight) are in it");
}

FluxAutoencoder load_flux_autoencoder(const std::string& path, Runtime runtime) {
  std::string file = find_file(path, {"flux1-dev-ae.safetensors", "ae.safetensors"});
  if (file.empty()) fail(ErrorKind::model, path + " holds no flux1-dev-ae.safetensors");
  Weights weights = read_weights(file);
  if (!weights.find("encoder.mid.attn_1.q.weight"))
    fail(ErrorKind::model, file + " is not FLUX.1's autoencoder: encoder.mid.attn_1.q.weight is not in it");
  return FluxAutoencoder(read_flux_ae_config(config_beside(file)), std::move(weights), std::move(runtime));
}

}  // namespace kinora
