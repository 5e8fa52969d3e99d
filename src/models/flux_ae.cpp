#include "models/flux_ae.h"

#include <cmath>

#include "nn/layers.h"

namespace kinora {
namespace {

constexpr int64_t kGroups = 32;
constexpr double kEps = 1e-6;

Value norm_silu(const Params& p, Value x) { return group_norm_layer(p, x, kGroups, kEps, "silu"); }
Value conv3x3(const Params& p, Value x, int64_t out) { return conv_layer(p, x, out, 3, true, {.padding = 1}); }

Value res_block(const Params& p, Value x, int64_t out) {
  ScopeGuard scope = p.scope();
  Value y = conv3x3(p / "conv1", norm_silu(p / "norm1", x), out);
  y = conv3x3(p / "conv2", norm_silu(p / "norm2", y), out);
  return (x.shape()[3] == out ? x : conv1x1_layer(p / "nin_shortcut", x, out, true)) + y;
}

Value attention_block(const Params& p, Value x) {
  ScopeGuard scope = p.scope();
  const Shape s = x.shape();
  Value h = group_norm_layer(p / "norm", x, kGroups, kEps);
  auto project = [&](const char* name) {
    return reshape(conv1x1_layer(p / name, h, s[3], true), {s[0], s[1] * s[2], 1, s[3]});
  };
  double scale = 1 / std::sqrt(static_cast<double>(s[3]));
  Value y = attention(project("q"), project("k"), project("v"), {}, {.scale = scale});
  return x + conv1x1_layer(p / "proj_out", reshape(y, s), s[3], true);
}

Value middle(const Params& p, Value x) {
  x = res_block(p / "block_1", x, x.shape()[3]);
  return res_block(p / "block_2", attention_block(p / "attn_1", x), x.shape()[3]);
}

}  // namespace

FluxAeConfig read_flux_ae_config(const Config& json) {
  FluxAeConfig c;
  int64_t width = json.integer("ch", 1, 65536, 128);
  std::vector<int64_t> multiples = json.integers("ch_mult", 1, 1024, {1, 2, 4, 4});
  if (multiples.empty() || multiples.size() > 10)
    fail(ErrorKind::model, json.name() + ": ch_mult must have 1 to 10 entries");
  if (width % kGroups != 0)
    fail(ErrorKind::model, json.name() + ": ch must be a multiple of " + std::to_string(kGroups));
  c.stem = width;
  c.channels.clear();
  for (int64_t multiple : multiples) c.channels.push_back(width * multiple);
  c.in_channels = json.integer("in_channels", 1, 64, c.in_channels);
  c.latent_channels = json.integer("z_channels", 1, 4096, c.latent_channels);
  c.res_blocks = json.integer("num_res_blocks", 1, 64, c.res_blocks);
  c.scaling_factor = json.real("scale_factor", 1e-6, 1e6, c.scaling_factor);
  c.shift_factor = json.real("shift_factor", -1e6, 1e6, c.shift_factor);
  return c;
}

Value build_flux_ae_encoder(const Params& root, const FluxAeConfig& c, Value x) {
  Params p = root / "encoder";
  x = conv3x3(p / "conv_in", x, c.stem);
  for (size_t i = 0; i < c.channels.size(); ++i) {
    Params level = p / "down" / static_cast<int>(i);
    for (int k = 0; k < c.res_blocks; ++k) x = res_block(level / "block" / k, x, c.channels[i]);
    if (i + 1 == c.channels.size()) break;
    Value padded = pad(pad(x, 1, 0, 1), 2, 0, 1);  // one row below, one column to the right
    x = conv_layer(level / "downsample" / "conv", padded, c.channels[i], 3, true, {.stride = 2});
  }
  return conv3x3(p / "conv_out", norm_silu(p / "norm_out", middle(p / "mid", x)), 2 * c.latent_channels);
}

Value build_flux_ae_decoder(const Params& root, const FluxAeConfig& c, Value z) {
  Params p = root / "decoder";
  Value x = middle(p / "mid", conv3x3(p / "conv_in", z, c.channels.back()));
  for (size_t i = c.channels.size(); i-- > 0;) {
    Params level = p / "up" / static_cast<int>(i);
    for (int k = 0; k <= c.res_blocks; ++k) x = res_block(level / "block" / k, x, c.channels[i]);
    if (i > 0) x = conv3x3(level / "upsample" / "conv", upsample_nearest2(x), c.channels[i]);
  }
  return conv3x3(p / "conv_out", norm_silu(p / "norm_out", x), c.in_channels);
}

}  // namespace kinora
