// The three networks of a pipeline, each compiled for the shapes it meets and kept for the next time.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "diffusion/backends.h"
#include "io/weights.h"
#include "models/dc_ae.h"
#include "models/gemma2.h"
#include "models/sana.h"

namespace kinora {

// A few compiled graphs by shape; all go when there would be more than `limit`.
class ExecutableCache {
 public:
  explicit ExecutableCache(size_t limit = 4) : limit_(limit) {}

  // What `build` gives, a graph, compiled for the runtime.
  template <class Build>
  const Executable& get(const std::vector<int64_t>& key, const Runtime& runtime, const Build& build) {
    auto found = entries_.find(key);
    if (found != entries_.end()) return found->second;
    Executable fresh = compile(build(), *runtime.backend, runtime.context);
    if (entries_.size() >= limit_) entries_.clear();
    return entries_.emplace(key, std::move(fresh)).first->second;
  }
  void clear() { entries_.clear(); }

 private:
  size_t limit_;
  std::map<std::vector<int64_t>, Executable> entries_;
};

class TextEncoder {
 public:
  TextEncoder(Gemma2Config config, Weights weights, Runtime runtime);
  // ids [batch, tokens] i32, mask [batch, tokens] f32 -> hidden states [batch, tokens, hidden] f32.
  Tensor encode(const Tensor& ids, const Tensor& mask, Keep keep = Keep::on_host);
  // Called with what each run is given, before it; empty: no more.
  void observe(std::function<void(const Tensor& ids, const Tensor& mask)> observer) { observer_ = std::move(observer); }
  const Gemma2Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  Graph graph(int64_t batch, int64_t tokens) const;
  const Executable& compiled(int64_t batch, int64_t tokens);  // inputs "ids", "mask"
  void stream_weights(size_t budget);  // from now on, as StreamOptions has it; 0: all may be held
  void close();                        // gives back what is compiled and the weights' memory

 private:
  std::function<void(const Tensor& ids, const Tensor& mask)> observer_;
  Gemma2Config config_;
  mutable Weights weights_;  // prepared when a graph first needs them
  Runtime runtime_;
  ExecutableCache cache_;
};

struct DenoiseInputs {
  Tensor latents;   // [batch, height, width, channels] f32
  Tensor timestep;  // [batch] f32
  Tensor guidance;  // [batch] f32; only for models with guidance embedding
  Tensor caption;   // [batch, tokens, caption_channels] f32
  Tensor mask;      // [batch, tokens] f32: 1 for a token, 0 for padding; not needed with lengths
  Tensor lengths;   // [batch] i32, from 1 to tokens: where padding stands behind the tokens alone, how many there are
};

// The lengths that say what a mask (on the host) says; undefined when some row is not ones, at least one, and then
// zeros.
Tensor mask_lengths(const Tensor& mask);

// Where a caption has tokens that do not count: a graph reads lengths, which is faster, or any mask.
enum class Padding { behind, anywhere };

class Denoiser {
 public:
  Denoiser(SanaConfig config, Weights weights, Runtime runtime);
  Tensor predict(const DenoiseInputs& inputs, Keep keep = Keep::on_host);  // [batch, height, width, out_channels] f32
  // As TextEncoder. While somebody observes, a pipeline calls predict() for each step on every device.
  void observe(std::function<void(const DenoiseInputs&)> observer) { observer_ = std::move(observer); }
  bool observed() const { return observer_ != nullptr; }
  void rest() { weights_.release_pages(); }  // after the last step: the autoencoder needs the memory
  void stream_weights(size_t budget);        // as TextEncoder
  void close();
  const SanaConfig& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  const Weights& prepared_weights() const;  // as graphs are to read them, see prepare_weights
  const Runtime& runtime() const { return runtime_; }
  DType dtype() const { return runtime_.dtype; }
  Graph graph(int64_t batch, int64_t height, int64_t width, int64_t tokens, Padding padding = Padding::behind) const;
  size_t memory(int64_t batch, int64_t height, int64_t width, int64_t tokens);  // bytes of activations when compiled
  const Executable& compiled(int64_t batch, int64_t height, int64_t width, int64_t tokens,
                             Padding padding = Padding::behind);
  // What `compiled` is run with.
  std::map<std::string, Tensor> feed(const DenoiseInputs& inputs) const;

 private:
  std::function<void(const DenoiseInputs&)> observer_;
  SanaConfig config_;
  mutable Weights weights_;  // prepared when a graph first needs them
  Runtime runtime_;
  ExecutableCache cache_;
};

// Tiles of pictures larger than `size` pixels, every `stride` pixels, cross-faded where they overlap.
struct Tiling {
  int64_t size = 512, stride = 448;
};

// Called with 0 and then after every tile (a picture in one piece is one tile): tiles done, tiles in all.
using TileReport = std::function<void(int64_t done, int64_t total)>;

// What autoencoders have in common: the graph from input "x", computed with in `dtype`, to output "y" in f32; and the
// results of each row of a batch by itself, so that it needs no more memory than one.
Graph autoencoder_graph(const Shape& input, const Weights& weights, DType dtype,
                        const std::function<Value(const Params&, Value)>& build);
Tensor run_each(const Tensor& batch, const std::function<Tensor(const Tensor& one)>& run);

class Autoencoder {
 public:
  Autoencoder(DcAeConfig config, Weights weights, Runtime runtime);
  // picture [batch, H, W, 3] f32 in [-1, 1] -> latents [batch, H/c, W/c, C] f32, not scaled.
  Tensor encode(const Tensor& picture, std::optional<Tiling> tiling = {});
  // latents, not scaled -> picture; on the host when there are several of them, or tiles.
  Tensor decode(const Tensor& latents, std::optional<Tiling> tiling = {}, const TileReport& on_tile = {},
                Keep keep = Keep::on_host);
  // One picture, decoded in one piece and rounded where it was computed: [1, H, W, 3] u8, as to_image() gives. Throws
  // Error(model) when it is not finite.
  Tensor decode_bytes(const Tensor& latents);
  const DcAeConfig& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  Graph graph(bool encoder, const Shape& input) const;
  size_t memory(bool encoder, const Shape& input);               // bytes of activations when compiled
  const Executable& compiled(bool encoder, const Shape& input);  // input "x"
  void stream_weights(size_t budget);                            // as TextEncoder
  void close();

 private:
  Tensor run(bool encoder, const Tensor& input, Keep keep = Keep::on_host);
  Tensor run_tiled(bool encoder, const Tensor& input, const Tiling& tiling, const TileReport& on_tile);
  DcAeConfig config_;
  Weights weights_;
  Runtime runtime_;
  ExecutableCache cache_, bytes_cache_;
};

}  // namespace kinora
