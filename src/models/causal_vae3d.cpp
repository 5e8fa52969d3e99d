#include "models/causal_vae3d.h"

#include <cmath>

#include "nn/layers.h"

namespace kinora {
namespace {

constexpr double kEps = 1e-6;

Value norm_silu(const Params& p, const CausalVae3dConfig& c, Value x) {
  return group_norm_layer(p, x, c.norm_groups, kEps, "silu");
}

Value res_block(const Params& p, const CausalVae3dConfig& c, Value x, int64_t out) {
  ScopeGuard scope = p.scope();
  Value y = causal_conv3d_layer(p / "conv1", norm_silu(p / "norm1", c, x), out, 3);
  y = causal_conv3d_layer(p / "conv2", norm_silu(p / "norm2", c, y), out, 3);
  return (x.shape()[4] == out ? x : causal_conv3d_layer(p / "conv_shortcut", x, out, 1)) + y;
}

// One head over all tokens of the film; a token sees those of its own frame and of the frames before.
Value frame_causal_attention(const Params& p, const CausalVae3dConfig& c, Value x) {
  ScopeGuard scope = p.scope();
  const Shape s = x.shape();
  int64_t channels = s[4], tokens = s.product(1, 4);
  Value h = group_norm_layer(p / "group_norm", x, c.norm_groups, kEps);
  auto project = [&](const char* name) {
    return reshape(linear_layer(p / name, h, channels, true), {s[0], tokens, 1, channels});
  };
  AttentionOptions options{.scale = 1 / std::sqrt(static_cast<double>(channels)), .causal = true, .block = s[2] * s[3]};
  Value y = attention(project("to_q"), project("to_k"), project("to_v"), {}, options);
  return x + linear_layer(p / "to_out" / 0, reshape(y, s), channels, true);
}

Value mid_block(const Params& p, const CausalVae3dConfig& c, Value x) {
  ScopeGuard scope = p.scope();
  int64_t channels = c.channels.back();
  x = res_block(p / "resnets" / 0, c, x, channels);
  if (c.mid_attention) x = frame_causal_attention(p / "attentions" / 0, c, x);
  return res_block(p / "resnets" / 1, c, x, channels);
}

// Nearest neighbour; the first frame stays one frame, so that k + 1 frames become 2k + 1.
Value upsample(Value x, bool time, bool space) {
  if (time && x.shape()[1] > 1) {
    Value rest = slice(x, 1, 1, x.shape()[1]);
    x = concat({slice(x, 1, 0, 1), repeat_interleave(rest, 1, 2)}, 1);
  }
  return space ? upsample_nearest3d(x, false) : x;
}

}  // namespace

// With a time ratio of 4 it is the two levels before the innermost that halve the frames, with 8 all that halve the
// picture.
bool CausalVae3dConfig::halves_time(size_t level) const {
  if (time_compression == 8) return halves_space(level);
  return level + 1 < channels.size() && level + 3 >= channels.size();
}

CausalVae3dConfig read_causal_vae3d_config(const Config& json) {
  CausalVae3dConfig c;
  auto either = [&](const char* a, const char* b) { return json.has(a) ? a : b; };
  if (std::string act = json.text("act_fn", "silu"); act != "silu")
    fail(ErrorKind::model, json.name() + ": act_fn \"" + act + "\" is not supported (only silu)");
  c.in_channels = json.integer("in_channels", 1, 64, c.in_channels);
  c.out_channels = json.integer("out_channels", 1, 64, c.out_channels);
  c.latent_channels = json.integer("latent_channels", 1, 4096, c.latent_channels);
  c.channels = json.integers("block_out_channels", 1, 65536, c.channels);
  c.layers_per_block = json.integer("layers_per_block", 1, 64, c.layers_per_block);
  c.norm_groups = json.integer("norm_num_groups", 1, 65536, c.norm_groups);
  c.mid_attention = json.boolean("mid_block_add_attention", true);
  c.time_compression = json.integer(either("time_compression_ratio", "temporal_compression_ratio"), 4, 8, 4);
  c.space_compression = json.integer("spatial_compression_ratio", 1, 64, 8);
  c.scaling_factor = json.real(either("scale_factor", "scaling_factor"), 1e-6, 1e6, c.scaling_factor);
  c.shift_factor = json.real("shift_factor", -1e6, 1e6, c.shift_factor);
  if (c.channels.empty() || c.channels.size() > 10)
    fail(ErrorKind::model, json.name() + ": block_out_channels must have 1 to 10 entries");
  for (int64_t channels : c.channels) {
    if (channels % c.norm_groups != 0)
      fail(ErrorKind::model, json.name() + ": block_out_channels must be multiples of norm_num_groups");
  }
  int64_t space = 1, time = 1;
  for (size_t i = 0; i < c.channels.size(); ++i) {
    space *= c.halves_space(i) ? 2 : 1;
    time *= c.halves_time(i) ? 2 : 1;
  }
  if (space != c.space_compression || time != c.time_compression)
    fail(ErrorKind::model, json.name() + ": " + std::to_string(c.channels.size()) +
                               " blocks do not give a compression of " + std::to_string(c.time_compression) +
                               " in time and " + std::to_string(c.space_compression) + " in space");
  return c;
}

Value build_causal_vae3d_encoder(const Params& root, const CausalVae3dConfig& c, Value x) {
  Params p = root / "encoder";
  x = causal_conv3d_layer(p / "conv_in", x, c.channels[0], 3);
  for (size_t i = 0; i < c.channels.size(); ++i) {
    Params block = p / "down_blocks" / static_cast<int>(i);
    for (int k = 0; k < c.layers_per_block; ++k) x = res_block(block / "resnets" / k, c, x, c.channels[i]);
    int64_t time = c.halves_time(i) ? 2 : 1, space = c.halves_space(i) ? 2 : 1;
    if (time * space > 1)
      x = causal_conv3d_layer(block / "downsamplers" / 0 / "conv", x, c.channels[i], 3, {time, space, space});
  }
  x = norm_silu(p / "conv_norm_out", c, mid_block(p / "mid_block", c, x));
  x = causal_conv3d_layer(p / "conv_out", x, 2 * c.latent_channels, 3);
  return conv1x1_layer(root / "quant_conv", x, 2 * c.latent_channels, true);
}

Value build_causal_vae3d_decoder(const Params& root, const CausalVae3dConfig& c, Value z) {
  Params p = root / "decoder";
  Value x = conv1x1_layer(root / "post_quant_conv", z, c.latent_channels, true);
  x = mid_block(p / "mid_block", c, causal_conv3d_layer(p / "conv_in", x, c.channels.back(), 3));
  size_t count = c.channels.size();
  for (size_t i = 0; i < count; ++i) {
    Params block = p / "up_blocks" / static_cast<int>(i);
    int64_t channels = c.channels[count - 1 - i];
    for (int k = 0; k <= c.layers_per_block; ++k) x = res_block(block / "resnets" / k, c, x, channels);
    bool time = c.halves_time(i), space = c.halves_space(i);  // the decoder counts its levels from the inside
    if (time || space)
      x = causal_conv3d_layer(block / "upsamplers" / 0 / "conv", upsample(x, time, space), channels, 3);
  }
  return causal_conv3d_layer(p / "conv_out", norm_silu(p / "conv_norm_out", c, x), c.out_channels, 3);
}

}  // namespace kinora
