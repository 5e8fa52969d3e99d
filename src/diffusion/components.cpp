#include "diffusion/components.h"

#include <algorithm>

#include "diffusion/finite.h"
#include "diffusion/tiling.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shaping.h"

namespace kinora {

namespace {

// Weights that come and go are not packed: the packed copy would stay.
void set_budget(Weights& weights, Runtime& runtime, size_t budget) {
  runtime.context.stream.budget = budget;
  if (budget) {
    weights.drop_repacked();
  } else {
    weights.keep_repacked();
  }
}

}  // namespace

void TextEncoder::stream_weights(size_t budget) {
  runtime_.context.stream.budget = budget;
  cache_.clear();
}

void TextEncoder::close() {
  cache_.clear();
  weights_.release_pages();
}

void Denoiser::stream_weights(size_t budget) {
  cache_.clear();
  set_budget(weights_, runtime_, budget);
}

void Denoiser::close() {
  stream_weights(runtime_.context.stream.budget);
  weights_.release_pages();
}

void Autoencoder::stream_weights(size_t budget) {
  cache_.clear();
  bytes_cache_.clear();
  set_budget(weights_, runtime_, budget);
}

void Autoencoder::close() {
  stream_weights(runtime_.context.stream.budget);
  weights_.release_pages();
}

TextEncoder::TextEncoder(Gemma2Config config, Weights weights, Runtime runtime)
    : config_(std::move(config)), weights_(std::move(weights)), runtime_(std::move(runtime)) {
  Graph probe;  // names and shapes are checked before the first prompt
  Params params(probe, weights_);
  build_gemma2(params, config_, probe.input("ids", {1, 1}, DType::i32), probe.input("mask", {1, 1}));
  params.expect_all_used();
}

Graph TextEncoder::graph(int64_t batch, int64_t tokens) const {
  prepare_weights(weights_, "text_encoder", runtime_);
  Graph graph;
  Value ids = graph.input("ids", {batch, tokens}, DType::i32), mask = graph.input("mask", {batch, tokens});
  Value hidden = build_gemma2(Params(graph, weights_), config_, ids, mask, runtime_.dtype);
  graph.output("hidden", cast(hidden, DType::f32));
  return graph;
}

Tensor TextEncoder::encode(const Tensor& ids, const Tensor& mask, Keep keep) {
  if (observer_) observer_(ids, mask);
  Tensor hidden = compiled(ids.shape()[0], ids.shape()[1]).run({{"ids", ids}, {"mask", mask}}, keep).at("hidden");
  weights_.release_pages();  // a prompt is encoded once; what comes next needs the memory
  return hidden;
}

const Executable& TextEncoder::compiled(int64_t batch, int64_t tokens) {
  return cache_.get({batch, tokens}, runtime_, [&] { return graph(batch, tokens); });
}

Denoiser::Denoiser(SanaConfig config, Weights weights, Runtime runtime)
    : config_(std::move(config)), weights_(std::move(weights)), runtime_(std::move(runtime)) {
  Graph probe;
  Params params(probe, weights_);
  int64_t side = config_.patch_size;
  SanaInputs in{probe.input("latents", {1, side, side, config_.in_channels}),
                probe.input("timestep", {1}),
                probe.input("guidance", {1}),
                probe.input("caption", {1, 1, config_.caption_channels}),
                {},
                {}};
  build_sana(params, config_, in);
  params.expect_all_used();
  weights_.keep_repacked();  // it runs many times
}

const Weights& Denoiser::prepared_weights() const {
  prepare_weights(weights_, "transformer", runtime_);
  return weights_;
}

Tensor mask_lengths(const Tensor& mask) {
  int64_t batch = mask.shape()[0], tokens = mask.shape()[1];
  std::vector<int32_t> lengths;
  for (int64_t b = 0; b < batch; ++b) {
    const float *row = mask.data<float>() + b * tokens, *end = row + tokens;
    const float* behind = std::find_if(row, end, [](float x) { return x != 1; });
    if (behind == row || std::any_of(behind, end, [](float x) { return x != 0; })) return {};
    lengths.push_back(static_cast<int32_t>(behind - row));
  }
  return Tensor::from({batch}, lengths);
}

Graph Denoiser::graph(int64_t batch, int64_t height, int64_t width, int64_t tokens, Padding padding) const {
  Graph graph;
  SanaInputs in;
  in.latents = cast(graph.input("latents", {batch, height, width, config_.in_channels}), runtime_.dtype);
  in.timestep = graph.input("timestep", {batch});
  if (config_.guidance_embeds) in.guidance = graph.input("guidance", {batch});
  in.caption = cast(graph.input("caption", {batch, tokens, config_.caption_channels}), runtime_.dtype);
  if (padding == Padding::behind) {
    in.lengths = graph.input("lengths", {batch}, DType::i32);
  } else {
    in.mask = graph.input("mask", {batch, tokens});
  }
  graph.output("sample", cast(build_sana(Params(graph, prepared_weights()), config_, in), DType::f32));
  return graph;
}

const Executable& Denoiser::compiled(int64_t batch, int64_t height, int64_t width, int64_t tokens, Padding padding) {
  return cache_.get({batch, height, width, tokens, static_cast<int64_t>(padding)}, runtime_,
                    [&] { return graph(batch, height, width, tokens, padding); });
}

size_t Denoiser::memory(int64_t batch, int64_t height, int64_t width, int64_t tokens) {
  return compiled(batch, height, width, tokens).arena_bytes();
}

std::map<std::string, Tensor> Denoiser::feed(const DenoiseInputs& in) const {
  std::map<std::string, Tensor> feed{{"latents", in.latents}, {"timestep", in.timestep}, {"caption", in.caption}};
  if (in.lengths.defined()) {
    feed["lengths"] = in.lengths;
  } else {
    feed["mask"] = in.mask;
  }
  if (config_.guidance_embeds) feed["guidance"] = in.guidance;
  return feed;
}

Tensor Denoiser::predict(const DenoiseInputs& in, Keep keep) {
  if (observer_) observer_(in);
  const Shape& s = in.latents.shape();
  Padding padding = in.lengths.defined() ? Padding::behind : Padding::anywhere;
  return compiled(s[0], s[1], s[2], in.caption.shape()[1], padding).run(feed(in), keep).at("sample");
}

Graph autoencoder_graph(const Shape& input, const Weights& weights, DType dtype,
                        const std::function<Value(const Params&, Value)>& build) {
  Graph graph;
  Value x = cast(graph.input("x", input), dtype);
  graph.output("y", cast(build(Params(graph, weights), x), DType::f32));
  return graph;
}

Tensor run_each(const Tensor& batch, const std::function<Tensor(const Tensor& one)>& run) {
  int64_t count = batch.shape()[0];
  if (count == 1) return run(batch);
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < count; ++i) parts.push_back(run(batch.rows(i, i + 1)));
  return concat_rows(parts);
}

Autoencoder::Autoencoder(DcAeConfig config, Weights weights, Runtime runtime)
    : config_(std::move(config)), weights_(std::move(weights)), runtime_(std::move(runtime)) {
  Graph probe;
  Params params(probe, weights_);
  int64_t side = config_.compression() * 8;
  build_dc_ae_encoder(params, config_, probe.input("picture", {1, side, side, config_.in_channels}));
  build_dc_ae_decoder(params, config_, probe.input("latents", {1, 8, 8, config_.latent_channels}));
  params.expect_all_used();
  weights_.keep_repacked();
}

Graph Autoencoder::graph(bool encoder, const Shape& input) const {
  auto build = encoder ? build_dc_ae_encoder : build_dc_ae_decoder;
  return autoencoder_graph(input, weights_, runtime_.dtype,
                           [&](const Params& params, Value x) { return build(params, config_, x); });
}

const Executable& Autoencoder::compiled(bool encoder, const Shape& input) {
  return cache_.get({encoder, input[0], input[1], input[2]}, runtime_, [&] { return graph(encoder, input); });
}

Tensor Autoencoder::decode_bytes(const Tensor& latents) {
  const Shape& input = latents.shape();
  const Executable& exe = bytes_cache_.get({input[1], input[2]}, runtime_, [&] {
    Graph graph;
    Value x = cast(graph.input("x", input), runtime_.dtype);
    Value y = cast(build_dc_ae_decoder(Params(graph, weights_), config_, x), DType::f32);
    constexpr double kRound = 12582912;  // 1.5 · 2^23: adding it rounds to a whole number
    Value level = affine(clamp(affine(y, 0.5, 0.5), 0, 1), 255, 0);
    graph.output("picture", cast(affine(affine(level, 1, kRound), 1, -kRound), DType::u8));
    int64_t height = y.shape()[1];
    graph.output("zeros", sum(affine(reshape(y, {height, y.shape().numel() / height}), 0, 0), {1}));
    return graph;
  });
  std::map<std::string, Tensor> out = exe.run({{"x", latents}});
  check_finite(out.at("zeros"), "the autoencoder");  // 0 · infinity is not a number
  weights_.release_pages();
  return out.at("picture");
}

size_t Autoencoder::memory(bool encoder, const Shape& input) { return compiled(encoder, input).arena_bytes(); }

Tensor Autoencoder::run(bool encoder, const Tensor& input, Keep keep) {
  if (input.shape()[0] != 1) keep = Keep::on_host;
  return run_each(input, [&](const Tensor& one) {
    return compiled(encoder, one.shape()).run({{"x", one}}, keep).at("y");
  });
}

namespace {

void check_tiling(const Tiling& t, int64_t ratio) {
  if (t.size < ratio || t.stride < ratio || t.stride > t.size || t.size % ratio != 0 || t.stride % ratio != 0) {
    fail(ErrorKind::usage, "tile size " + std::to_string(t.size) + " and stride " + std::to_string(t.stride) +
                               " must be multiples of " + std::to_string(ratio) + ", the stride at most the size");
  }
}

}  // namespace

Tensor Autoencoder::run_tiled(bool encoder, const Tensor& input, const Tiling& t, const TileReport& on_tile) {
  int64_t ratio = config_.compression(), height = input.shape()[1], width = input.shape()[2];
  check_tiling(t, ratio);
  TileGrid grid =
      encoder ? TileGrid{t.size, t.stride, t.size / ratio, t.stride / ratio, height / ratio, width / ratio, ratio}
              : TileGrid{t.size / ratio, t.stride / ratio, t.size, t.stride, height * ratio, width * ratio, 1};
  int64_t total = tile_count(height, width, grid.stride), done = 0;
  if (on_tile) on_tile(0, total);
  return kinora::run_tiled(input, grid, [&](const Tensor& tile) {
    Tensor result = run(encoder, tile);
    if (on_tile) on_tile(++done, total);
    return result;
  });
}

Tensor Autoencoder::encode(const Tensor& picture, std::optional<Tiling> tiling) {
  const Shape& s = picture.shape();
  bool tiled = tiling && (s[1] > tiling->size || s[2] > tiling->size);
  Tensor latents = tiled ? run_tiled(true, picture, *tiling, {}) : run(true, picture);
  weights_.release_pages();
  return latents;
}

Tensor Autoencoder::decode(const Tensor& latents, std::optional<Tiling> tiling, const TileReport& on_tile, Keep keep) {
  const Shape& s = latents.shape();
  int64_t ratio = config_.compression();
  bool tiled = tiling && (s[1] * ratio > tiling->size || s[2] * ratio > tiling->size);
  if (!tiled && on_tile) on_tile(0, 1);
  Tensor picture = tiled ? run_tiled(false, latents, *tiling, on_tile) : run(false, latents, keep);
  if (!tiled && on_tile) on_tile(1, 1);
  weights_.release_pages();
  return picture;
}

}  // namespace kinora
