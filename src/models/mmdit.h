// The video transformer of Open-Sora 2.0 ("Open-Sora 2.0: Training a Commercial-Level Video Generation Model in $200k",
// arXiv:2503.09642) and the picture transformer it grew from, Flux: text and picture tokens in two streams that attend
// to each other (MMDiT, arXiv:2403.03206), then in one. Tensor names are those of Open-Sora_v2.safetensors and
// flux1-dev.safetensors.
#pragma once

#include <array>

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

struct MmditConfig {
  int64_t in_channels = 64;  // of a token: latent channels · patch_size²
  int64_t patch_size = 2;    // latents a token is wide and high
  int64_t hidden = 3072, heads = 24, mlp_hidden = 12288;
  int64_t depth = 19, single_depth = 38;        // two-stream and one-stream blocks
  int64_t text_dim = 4096, pooled_dim = 768;    // T5's and CLIP's widths
  std::array<int64_t, 3> axes_dim{16, 56, 56};  // parts of a head that frame, row and column turn
  double theta = 10000;
  bool qkv_bias = true;           // of the two-stream blocks
  bool fused_qkv = false;         // one tensor for q, k and v (Flux)
  bool interleaved_rope = false;  // neighbours are turned together (Flux), else the halves of a head
  bool guidance_embed = false;    // guidance strength is an input (Flux-dev)
  bool cond_embed = true;         // a mask and masked latents are an input (Open-Sora)

  int64_t head_dim() const { return hidden / heads; }
  int64_t latent_channels() const { return in_channels / (patch_size * patch_size); }
  int64_t cond_channels() const { return in_channels + patch_size * patch_size; }
};

// What the names and shapes of the tensors tell. Rotation follows qkv: split and by halves, or fused and interleaved.
// Throws Error(model) when they are no MMDiT's.
MmditConfig infer_mmdit_config(const Weights& weights);

// The same, with what a config file says (the keys of Open-Sora's `model` config) in place of what is inferred.
MmditConfig read_mmdit_config(const Config& json, const Weights& weights);

// Where tokens lie, in latent frames and in patches; fractions are welcome. A film of T x H x W tokens has 0 … T-1,
// 0 … H-1, 0 … W-1.
struct MmditPositions {
  std::vector<double> frames, rows, columns;

  static MmditPositions grid(int64_t frames, int64_t rows, int64_t columns);
  int64_t tokens() const { return static_cast<int64_t>(frames.size() * rows.size() * columns.size()); }
};

// The rotary table of one axis (0: frames, 1: rows, 2: columns): [positions, axes_dim[axis]] f32, cosines then sines.
// Angles are computed in float32, or in float64 for interleaved rotation, as the checkpoints were trained with.
Tensor rope_axis(const MmditConfig& config, int axis, const std::vector<double>& positions);

struct MmditInputs {
  Value image;     // [batch, tokens, in_channels]: packed latents; the column varies fastest, the frame slowest
  Value cond;      // [batch, tokens, cond_channels()]: packed mask and masked latents; only with cond_embed
  Value text;      // [batch, text tokens, text_dim]
  Value pooled;    // [batch, pooled_dim]
  Value timestep;  // [batch] f32, 1 is noise, 0 is clean
  Value guidance;  // [batch] f32; only with guidance_embed
  std::array<Value, 3> axes;  // the tables of rope_axis
};

// Appends the model; returns the velocity [batch, tokens, in_channels] in the image's type.
Value build_mmdit(const Params& params, const MmditConfig& config, const MmditInputs& inputs);

}  // namespace kinora
