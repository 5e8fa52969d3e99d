// The text encoders of Open-Sora and Flux, T5 and CLIP, each compiled for the shapes it meets and kept for the next
// time.
#pragma once

#include <string>

#include "diffusion/components.h"
#include "models/clip.h"
#include "models/t5.h"

namespace kinora {

class T5Encoder {
 public:
  // Throws Error(model) for a missing, misshapen or left-over tensor of the encoder; a decoder beside it is ignored.
  T5Encoder(T5Config config, Weights weights, Runtime runtime);
  // A folder as published: config.json and model.safetensors, or its shards and their index.
  static T5Encoder load(const std::string& folder, const Runtime& runtime, const std::string& variant = "");

  // ids [batch, tokens] i32, mask [batch, tokens] f32 or undefined (padding is attended, as Open-Sora and Flux have it)
  // -> hidden states [batch, tokens, d_model] f32. Throws Error(input) for an id outside the vocabulary.
  Tensor encode(const Tensor& ids, const Tensor& mask = {});
  const T5Config& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  Graph graph(int64_t batch, int64_t tokens, bool masked = false) const;
  const Executable& compiled(int64_t batch, int64_t tokens, bool masked = false);  // inputs "ids" and perhaps "mask"

 private:
  T5Config config_;
  mutable Weights weights_;  // prepared when a graph first needs them
  Runtime runtime_;
  ExecutableCache cache_;
};

class ClipTextEncoder {
 public:
  struct Output {
    Tensor hidden;  // [batch, tokens, hidden] f32, after the final norm
    Tensor pooled;  // [batch, hidden] f32
  };

  // Throws as T5Encoder does; the picture tower and the projections of a whole CLIP model are ignored.
  ClipTextEncoder(ClipTextConfig config, Weights weights, Runtime runtime);
  static ClipTextEncoder load(const std::string& folder, const Runtime& runtime, const std::string& variant = "");

  // ids [batch, tokens] i32, at most config().max_positions tokens; there is no mask, as padding comes last.
  Output encode(const Tensor& ids);
  const ClipTextConfig& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  Graph graph(int64_t batch, int64_t tokens) const;

 private:
  ClipTextConfig config_;
  mutable Weights weights_;  // prepared when a graph first needs them
  Runtime runtime_;
  ExecutableCache cache_;
};

}  // namespace kinora
