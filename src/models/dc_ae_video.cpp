#include "models/dc_ae_video.h"

#include "nn/layers.h"

namespace kinora {
namespace {

constexpr double kEps = 1e-5;

Value norm(const Params& p, Value x) {
  ScopeGuard scope = p.scope();
  int64_t channels = x.shape()[4];
  return rms_norm(x, p.get("weight", {channels}), p.get("bias", {channels}), kEps);
}

Value conv3(const Params& p, Value x, int64_t out, bool bias, const std::string& act = "none") {
  return conv3d_layer(p / "conv", x, out, 3, bias, {.padding = {1, 1, 1}, .act = act});
}

Value res_block(const Params& p, Value x) {
  ScopeGuard scope = p.scope();
  int64_t channels = x.shape()[4];
  Value y = conv3(p / "conv1", x, channels, true, "silu");
  return x + norm(p / "conv2" / "norm", conv3(p / "conv2", y, channels, false));
}

// Linear attention at two scales: of the projections themselves and of their sums over 5 x 5 x 5 neighbours.
Value multiscale_attention(const Params& p, const VideoDcAeConfig& c, Value x) {
  ScopeGuard scope = p.scope();
  const Shape s = x.shape();
  int64_t inner = s[4] / c.head_dim * c.head_dim, heads = inner / c.head_dim, tokens = s.product(1, 4);
  Value qkv = conv1x1_layer(p / "qkv" / "conv", x, 3 * inner, false);
  Value wide =
      conv3d_layer(p / "aggreg" / 0 / 0, qkv, 3 * inner, 5, false, {.padding = {2, 2, 2}, .groups = 3 * inner});
  wide = conv3d_layer(p / "aggreg" / 0 / 1, wide, 3 * inner, 1, false, {.groups = 3 * heads});
  // Each head of each scale reads 3·head_dim neighbouring channels: its query, key and value.
  std::vector<Value> parts = split(reshape(concat({qkv, wide}, 4), {s[0], tokens, 2 * heads, 3 * c.head_dim}), 3, 3);
  Value y = reshape(linear_attention(parts[0], parts[1], parts[2]), s.with(4, 2 * inner));
  return norm(p / "proj" / "norm", conv1x1_layer(p / "proj" / "conv", y, s[4], false));
}

Value glu_conv(const Params& p, Value x) {
  ScopeGuard scope = p.scope();
  int64_t channels = x.shape()[4], hidden = 4 * channels;
  Value y = conv1x1_layer(p / "inverted_conv" / "conv", x, 2 * hidden, true, "silu");
  y = conv3d_layer(p / "depth_conv" / "conv", y, 2 * hidden, 3, true, {.padding = {1, 1, 1}, .groups = 2 * hidden});
  return norm(p / "point_conv" / "norm", conv1x1_layer(p / "point_conv" / "conv", glu(y), channels, false));
}

Value layer(const Params& p, const VideoDcAeConfig& c, size_t level, Value x) {
  if (!c.attention[level]) return res_block(p / "main", x);
  x = x + multiscale_attention(p / "context_module" / "main", c, x);
  return x + glu_conv(p / "local_module" / "main", x);
}

// The mean of each group of neighbouring channels.
Value channel_average(Value x, int64_t out) {
  const Shape s = x.shape();
  return reshape(mean(reshape(x, {s.product(0, 4), out, s[4] / out}), {2}), s.with(4, out));
}

// A single frame stays one: then only the picture is halved or doubled.
int64_t time_factor(bool halves_time, Value x) { return halves_time && x.shape()[1] > 1 ? 2 : 1; }

Value down_block(const Params& p, Value x, int64_t out, bool halves_time) {
  ScopeGuard scope = p.scope();
  Conv3dOptions options{.stride = {halves_time ? 2 : 1, 2, 2}, .padding = {1, 1, 1}};
  Value y = conv3d_layer(p / "main" / "conv", x, out, 3, true, options);
  return y + channel_average(pixel_unshuffle3d(x, time_factor(halves_time, x), 2), out);
}

Value up_block(const Params& p, Value x, int64_t out, bool halves_time) {
  ScopeGuard scope = p.scope();
  int64_t time = time_factor(halves_time, x);
  Value y = conv3(p / "main" / "conv", upsample_nearest3d(x, time == 2), out, true);
  return y + pixel_shuffle3d(repeat_interleave(x, 4, out * time * 4 / x.shape()[4]), time, 2);
}

}  // namespace

int64_t VideoDcAeConfig::time_compression() const {
  int64_t ratio = 1;
  for (size_t i = 0; i + 1 < channels.size(); ++i) ratio *= halves_time[i] ? 2 : 1;
  return ratio;
}

VideoDcAeConfig read_video_dc_ae_config(const Config& json) {
  VideoDcAeConfig c;
  c.in_channels = json.integer("in_channels", 1, 64, c.in_channels);
  c.latent_channels = json.integer("latent_channels", 1, 4096, c.latent_channels);
  c.channels = json.integers("width_list", 1, 65536, c.channels);
  c.encoder_layers = json.integers("encoder_depth_list", 1, 256, c.encoder_layers);
  c.decoder_layers = json.integers("decoder_depth_list", 1, 256, c.decoder_layers);
  c.halves_time = json.booleans("temporal_downsample", c.halves_time);
  c.scaling_factor = json.real("scaling_factor", 1e-6, 1e6, c.scaling_factor);
  size_t count = c.channels.size();
  if (json.has("block_type")) {
    c.attention.clear();
    for (const std::string& type : json.texts("block_type", count, "ResBlock")) {
      if (type != "ResBlock" && type != "EViTS5_GLU")
        fail(ErrorKind::model, json.name() + ": unknown block type \"" + type + "\" (known: ResBlock, EViTS5_GLU)");
      c.attention.push_back(type != "ResBlock");
    }
  }
  if (count < 1 || count > 10 || c.encoder_layers.size() != count || c.decoder_layers.size() != count ||
      c.attention.size() != count || c.halves_time.size() != count) {
    fail(ErrorKind::model, json.name() + ": the lists must have the same length, 1 to 10");
  }
  auto divides = [&](int64_t a, int64_t b) {
    if (b % a != 0)
      fail(ErrorKind::model,
           json.name() + ": " + std::to_string(b) + " channels of a shortcut do not divide into " + std::to_string(a));
  };
  divides(c.latent_channels, c.channels.back());
  for (size_t i = 0; i + 1 < count; ++i) {
    int64_t times = c.halves_time[i] ? 8 : 4;
    // Averages on the way in, repeats on the way out; a single frame is not divided in time.
    for (int64_t factor : {times, int64_t{4}}) {
      divides(c.channels[i + 1], c.channels[i] * factor);
    }
  }
  for (size_t i = 0; i < count; ++i) {
    if (c.attention[i]) divides(c.head_dim, c.channels[i]);
  }
  return c;
}

Value build_video_dc_ae_encoder(const Params& root, const VideoDcAeConfig& c, Value x) {
  Params p = root / "encoder";
  x = conv3(p / "project_in", x, c.channels[0], true);
  for (size_t i = 0; i < c.channels.size(); ++i) {
    Params stage = p / "stages" / static_cast<int>(i) / "op_list";
    int index = 0;
    for (int64_t k = 0; k < c.encoder_layers[i]; ++k) x = layer(stage / index++, c, i, x);
    if (i + 1 < c.channels.size()) x = down_block(stage / index, x, c.channels[i + 1], c.halves_time[i]);
  }
  return conv3(p / "project_out" / "main" / "op_list" / 0, x, c.latent_channels, true) +
         channel_average(x, c.latent_channels);
}

Value build_video_dc_ae_decoder(const Params& root, const VideoDcAeConfig& c, Value z) {
  Params p = root / "decoder";
  Value x = conv3(p / "project_in" / "main", z, c.channels.back(), true) +
            repeat_interleave(z, 4, c.channels.back() / c.latent_channels);
  for (size_t i = c.channels.size(); i-- > 0;) {
    Params stage = p / "stages" / static_cast<int>(i) / "op_list";
    int index = 0;
    if (i + 1 < c.channels.size()) x = up_block(stage / index++, x, c.channels[i], c.halves_time[i]);
    for (int64_t k = 0; k < c.decoder_layers[i]; ++k) x = layer(stage / index++, c, i, x);
  }
  x = relu(norm(p / "project_out" / "op_list" / 0, x));
  return conv3(p / "project_out" / "op_list" / 2, x, c.in_channels, true);
}

}  // namespace kinora
