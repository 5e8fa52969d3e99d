#include "models/dc_ae.h"

#include "nn/layers.h"

namespace kinora {
namespace {

constexpr double kEps = 1e-5;

DcAeSide read_side(const Config& json, const std::string& side, std::vector<int64_t> default_layers) {
  DcAeSide s;
  s.channels = json.integers(side + "_block_out_channels", 1, 65536, {128, 256, 512, 512, 1024, 1024});
  size_t count = s.channels.size();
  if (count < 1 || count > 10)
    fail(ErrorKind::model, json.name() + ": " + side + "_block_out_channels must have 1 to 10 entries");
  s.block_types = json.texts(side + "_block_types", count, "ResBlock");
  s.layers = json.integers(side + "_layers_per_block", 0, 256, std::move(default_layers));
  s.multiscales = json.integer_lists(side + "_qkv_multiscales", 1, 31);
  if (!json.has(side + "_qkv_multiscales")) s.multiscales = {{}, {}, {}, {5}, {5}, {5}};
  s.norms = side == "decoder" ? json.texts("decoder_norm_types", count, "rms_norm")
                              : std::vector<std::string>(count, "rms_norm");
  s.acts = side == "decoder" ? json.texts("decoder_act_fns", count, "silu") : std::vector<std::string>(count, "silu");
  if (s.layers.size() != count || s.multiscales.size() != count) {
    fail(ErrorKind::model, json.name() + ": the lists of the " + side + " differ in length");
  }
  for (size_t i = 0; i < count; ++i) {
    if (s.block_types[i] != "ResBlock" && s.block_types[i] != "EfficientViTBlock") {
      fail(ErrorKind::model, json.name() + ": unknown block type \"" + s.block_types[i] + "\"");
    }
    if (s.norms[i] != "rms_norm" && s.norms[i] != "batch_norm") {
      fail(ErrorKind::model, json.name() + ": unknown norm type \"" + s.norms[i] + "\" (known: rms_norm, batch_norm)");
    }
  }
  return s;
}

}  // namespace

DcAeConfig read_dc_ae_config(const Config& json) {
  DcAeConfig c;
  c.in_channels = json.integer("in_channels", 1, 64, c.in_channels);
  c.latent_channels = json.integer("latent_channels", 1, 4096, c.latent_channels);
  c.head_dim = json.integer("attention_head_dim", 1, 256, c.head_dim);
  c.encoder = read_side(json, "encoder", {2, 2, 2, 3, 3, 3});
  c.decoder = read_side(json, "decoder", {3, 3, 3, 3, 3, 3});
  c.pixel_shuffle_up = json.text("upsample_block_type", "pixel_shuffle") != "interpolate";
  c.pixel_unshuffle_down = json.text("downsample_block_type", "pixel_unshuffle") == "pixel_unshuffle";
  c.encoder_out_shortcut = json.boolean("encoder_out_shortcut", true);
  c.decoder_in_shortcut = json.boolean("decoder_in_shortcut", true);
  c.decoder_conv_act = json.text("decoder_conv_act_fn", "relu");
  c.scaling_factor = json.real("scaling_factor", 1e-6, 1e6, 1.0);
  if (c.encoder.channels.size() != c.decoder.channels.size()) {
    fail(ErrorKind::model, json.name() + ": encoder and decoder must have the same number of blocks");
  }
  return c;
}

namespace {

// Over channels; "batch_norm" with its running statistics, as at inference.
Value norm(const Params& p, const std::string& kind, Value x) {
  ScopeGuard scope = p.scope();
  int64_t channels = x.shape()[3];
  if (kind == "rms_norm") return rms_norm(x, p.get("weight", {channels}), p.get("bias", {channels}), kEps);
  Value scale = p.f32("weight", {channels}) * rsqrt(affine(p.f32("running_var", {channels}), 1, kEps));
  Value shift = p.f32("bias", {channels}) - p.f32("running_mean", {channels}) * scale;
  return x * cast(scale, x.dtype()) + cast(shift, x.dtype());
}

Value res_block(const Params& p, Value x, const std::string& norm_kind, const std::string& act) {
  ScopeGuard scope = p.scope();
  int64_t channels = x.shape()[3];
  bool fused = act == "silu" || act == "relu";  // other activations follow the convolution
  Value y = conv_layer(p / "conv1", x, channels, 3, true, {.padding = 1, .act = fused ? act : "none"});
  if (!fused) y = activation(y, act);
  y = conv_layer(p / "conv2", y, channels, 3, false, {.padding = 1});
  return norm(p / "norm", norm_kind, y) + x;
}

// Attention within one small picture: scores normalised by their sum over the keys.
Value quadratic_attention(Value q, Value k, Value v) {
  auto heads_first = [](Value x) { return permute(x, {0, 2, 1, 3}); };
  Value scores =
      cast(matmul(relu(heads_first(q)), relu(heads_first(k)), false, true), DType::f32);  // [b, g, queries, keys]
  scores = cast(scores / affine(sum(scores, {3}), 1, 1e-15), v.dtype());
  return permute(matmul(scores, heads_first(v)), {0, 2, 1, 3});
}

Value multiscale_attention(const Params& p, const DcAeConfig& c, Value x, const std::vector<int64_t>& kernels,
                           const std::string& norm_kind) {
  ScopeGuard scope = p.scope();
  const Shape s = x.shape();
  int64_t tokens = s[1] * s[2], inner = s[3] / c.head_dim * c.head_dim;
  std::vector<Value> scales{
      concat({linear_layer(p / "to_q", x, inner, false), linear_layer(p / "to_k", x, inner, false),
              linear_layer(p / "to_v", x, inner, false)},
             3)};
  for (size_t i = 0; i < kernels.size(); ++i) {
    Params scale = p / "to_qkv_multiscale" / static_cast<int>(i);
    Value y = conv_layer(scale / "proj_in", scales[0], 3 * inner, kernels[i], false,
                         {.padding = kernels[i] / 2, .groups = 3 * inner});
    scales.push_back(conv_layer(scale / "proj_out", y, 3 * inner, 1, false, {.groups = 3 * inner / c.head_dim}));
  }
  // The stored to_q, to_k and to_v are thirds of one projection: each head reads 3·head_dim neighbouring channels.
  int64_t groups = inner / c.head_dim * static_cast<int64_t>(scales.size());
  Value qkv = reshape(concat(scales, 3), {s[0], tokens, groups, 3 * c.head_dim});
  std::vector<Value> parts = split(qkv, 3, 3);
  Value y = tokens > c.head_dim ? linear_attention(parts[0], parts[1], parts[2])
                                : quadratic_attention(parts[0], parts[1], parts[2]);
  y = linear_layer(p / "to_out", reshape(y, {s[0], s[1], s[2], groups * c.head_dim}), s[3], false);
  return norm(p / "norm_out", norm_kind, y) + x;
}

Value glu_conv(const Params& p, Value x) {
  ScopeGuard scope = p.scope();
  int64_t channels = x.shape()[3], hidden = 4 * channels;
  Value y = conv1x1_layer(p / "conv_inverted", x, 2 * hidden, true, "silu");
  Params depth = p / "conv_depth";
  y = depthwise_glu(y, depth.get("weight", {2 * hidden, 1, 3, 3}), depth.get("bias", {2 * hidden}));
  y = conv1x1_layer(p / "conv_point", y, channels, false);
  return norm(p / "norm", "rms_norm", y) + x;
}

Value layer(const Params& p, const DcAeConfig& c, const DcAeSide& side, size_t stage, Value x) {
  if (side.block_types[stage] == "ResBlock") return res_block(p, x, side.norms[stage], side.acts[stage]);
  Value y = multiscale_attention(p / "attn", c, x, side.multiscales[stage], side.norms[stage]);
  return glu_conv(p / "conv_out", y);
}

// The mean of each group of neighbouring channels.
Value channel_average(Value x, int64_t out) {
  const Shape s = x.shape();
  Value grouped = reshape(x, {s[0], s[1], s[2], out, s[3] / out});
  return reshape(mean(grouped, {4}), {s[0], s[1], s[2], out});
}

Value down_block(const Params& p, Value x, int64_t out, bool unshuffle, bool shortcut) {
  ScopeGuard scope = p.scope();
  Value y = unshuffle ? pixel_unshuffle(conv_layer(p / "conv", x, out / 4, 3, true, {.padding = 1}), 2)
                      : conv_layer(p / "conv", x, out, 3, true, {.stride = 2, .padding = 1});
  return shortcut ? y + channel_average(pixel_unshuffle(x, 2), out) : y;
}

Value up_block(const Params& p, Value x, int64_t out, bool shuffle, bool shortcut) {
  ScopeGuard scope = p.scope();
  Value y = shuffle ? pixel_shuffle(conv_layer(p / "conv", x, out * 4, 3, true, {.padding = 1}), 2)
                    : conv_layer(p / "conv", upsample_nearest2(x), out, 3, true, {.padding = 1});
  if (!shortcut) return y;
  int64_t repeats = out * 4 / x.shape()[3];
  // Repeating by a multiple of four before the shuffle is nearest upsampling.
  if (repeats % 4 == 0) return y + upsample_nearest2(repeat_interleave(x, 3, repeats / 4));
  if (repeats == 2) {  // each pixel's channels are its two rows, and its columns are alike
    const Shape s = x.shape();
    Value rows = reshape(permute(reshape(x, {s[0], s[1], s[2], out, 2}), {0, 1, 4, 2, 3}), {s[0], 2 * s[1], s[2], out});
    return y + repeat_interleave(rows, 2, 2);
  }
  return y + pixel_shuffle(repeat_interleave(x, 3, repeats), 2);
}

}  // namespace

Value build_dc_ae_encoder(const Params& root, const DcAeConfig& c, Value x) {
  Params p = root / "encoder";
  const DcAeSide& side = c.encoder;
  bool plain = side.layers[0] > 0;
  int64_t first = plain || side.channels.size() == 1 ? side.channels[0] : side.channels[1];
  x = plain ? conv_layer(p / "conv_in", x, first, 3, true, {.padding = 1})
            : down_block(p / "conv_in", x, first, c.pixel_unshuffle_down, false);
  for (size_t i = 0; i < side.channels.size(); ++i) {
    Params stage = p / "down_blocks" / static_cast<int>(i);
    int index = 0;
    for (int64_t k = 0; k < side.layers[i]; ++k) x = layer(stage / index++, c, side, i, x);
    if (i + 1 < side.channels.size() && side.layers[i] > 0) {
      x = down_block(stage / index, x, side.channels[i + 1], c.pixel_unshuffle_down, true);
    }
  }
  Value y = conv_layer(p / "conv_out", x, c.latent_channels, 3, true, {.padding = 1});
  return c.encoder_out_shortcut ? y + channel_average(x, c.latent_channels) : y;
}

Value build_dc_ae_decoder(const Params& root, const DcAeConfig& c, Value z) {
  Params p = root / "decoder";
  const DcAeSide& side = c.decoder;
  Value x = conv_layer(p / "conv_in", z, side.channels.back(), 3, true, {.padding = 1});
  if (c.decoder_in_shortcut) x = x + repeat_interleave(z, 3, side.channels.back() / c.latent_channels);
  for (size_t i = side.channels.size(); i-- > 0;) {
    Params stage = p / "up_blocks" / static_cast<int>(i);
    int index = 0;
    if (i + 1 < side.channels.size() && side.layers[i] > 0) {
      x = up_block(stage / index++, x, side.channels[i], c.pixel_shuffle_up, true);
    }
    for (int64_t k = 0; k < side.layers[i]; ++k) x = layer(stage / index++, c, side, i, x);
  }
  x = norm(p / "norm_out", "rms_norm", x);
  x = activation(x, c.decoder_conv_act);
  if (side.layers[0] > 0) return conv_layer(p / "conv_out", x, c.in_channels, 3, true, {.padding = 1});
  return up_block(p / "conv_out", x, c.in_channels, c.pixel_shuffle_up, false);
}

}  // namespace kinora
