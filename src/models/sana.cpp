#include "models/sana.h"

#include <cmath>

#include "nn/layers.h"

namespace kinora {

SanaConfig read_sana_config(const Config& json) {
  SanaConfig c;
  c.in_channels = json.integer("in_channels", 1, 4096, c.in_channels);
  c.out_channels = json.integer("out_channels", 1, 4096, c.in_channels);
  c.heads = json.integer("num_attention_heads", 1, 1024, c.heads);
  c.head_dim = json.integer("attention_head_dim", 1, 256, c.head_dim);
  c.layers = json.integer("num_layers", 1, 1024, c.layers);
  c.cross_heads = json.integer("num_cross_attention_heads", 1, 1024, c.cross_heads);
  c.cross_head_dim = json.integer("cross_attention_head_dim", 1, 1024, c.cross_head_dim);
  c.caption_channels = json.integer("caption_channels", 1, 65536, c.caption_channels);
  c.mlp_ratio = json.real("mlp_ratio", 0.01, 64, c.mlp_ratio);
  c.sample_size = json.integer("sample_size", 1, 4096, c.sample_size);
  c.patch_size = json.integer("patch_size", 1, 16, c.patch_size);
  c.norm_eps = json.real("norm_eps", 0, 1, c.norm_eps);
  c.interpolation_scale = json.optional_real("interpolation_scale", 1e-3, 1e3);
  c.attention_bias = json.boolean("attention_bias", c.attention_bias);
  c.guidance_embeds = json.boolean("guidance_embeds", c.guidance_embeds);
  c.guidance_embeds_scale = json.real("guidance_embeds_scale", 0, 1e6, c.guidance_embeds_scale);
  c.timestep_scale = json.real("timestep_scale", 0, 1e6, c.timestep_scale);
  std::string qk_norm = json.text("qk_norm", "");
  if (!qk_norm.empty() && qk_norm != "rms_norm_across_heads") {
    fail(ErrorKind::model, json.name() + ": qk_norm \"" + qk_norm + "\" is not known (null or rms_norm_across_heads)");
  }
  c.qk_norm = !qk_norm.empty();
  if (json.boolean("norm_elementwise_affine", false)) {
    fail(ErrorKind::model, json.name() + ": norm_elementwise_affine true is not supported; no published Sana has it");
  }
  if (c.cross_heads * c.cross_head_dim != c.width() ||
      json.integer("cross_attention_dim", 1, 1 << 20, c.width()) != c.width()) {
    fail(ErrorKind::model,
         json.name() + ": the cross-attention's width must equal num_attention_heads · attention_head_dim");
  }
  return c;
}

namespace {

// Shapes below: D is the model's width, heads · head_dim; a picture of height x width tokens has that many, row by row.

// [batch, 256] features -> [batch, D]
Value embedding_mlp(const Params& p, Value features, int64_t d) {
  return linear_layer(p / "linear_2", linear_layer(p / "linear_1", features, d, true, "silu"), d, true);
}

// [height · width, D]: the grid rescaled to the size the model was trained at; columns first, then rows. Models without
// it learn places from the convolution in Mix-FFN alone (the paper's NoPE).
Value position_embedding(Graph& graph, const SanaConfig& c, int64_t height, int64_t width) {
  int64_t base = c.sample_size / c.patch_size, dim = c.width() / 2;
  auto axis = [&](int64_t extent) {
    std::vector<double> positions;
    for (int64_t i = 0; i < extent; ++i) {
      double step = static_cast<double>(extent) / static_cast<double>(base);
      positions.push_back(static_cast<double>(i) / step / *c.interpolation_scale);
    }
    return graph.constant(sinusoid(positions, dim, 10000, false));
  };
  Value columns = broadcast_to(reshape(axis(width), {1, width, dim}), {height, width, dim});
  Value rows = broadcast_to(reshape(axis(height), {height, 1, dim}), {height, width, dim});
  return reshape(concat({columns, rows}, 2), {height * width, 2 * dim});
}

// What every block is told of time and text. Modulation is AdaLN-single (PixArt-α, arXiv:2310.00426): computed once
// from the time, and adapted by each block with a table of its own.
struct Conditioning {
  Value modulation;  // [batch, 6, D]: what is added to each block's scale_shift_table
  Value embedded;    // [batch, D]: the time embedding before its last layer, for the output norm
  Value caption;     // [batch, tokens, D]
  Value mask_bias;   // [batch, tokens] f32, or undefined
  Value lengths;     // [batch] i32, or undefined
};

Conditioning build_conditioning(const Params& p, const SanaConfig& c, const SanaInputs& in) {
  int64_t d = c.width(), batch = in.latents.shape()[0];
  DType dtype = in.latents.dtype();
  Conditioning out;
  Params time = p / "time_embed";
  Value features = cast(timestep_features(in.timestep), dtype);
  if (c.guidance_embeds) {  // Sprint
    Value guidance = cast(timestep_features(in.guidance), dtype);
    out.embedded =
        embedding_mlp(time / "timestep_embedder", features, d) + embedding_mlp(time / "guidance_embedder", guidance, d);
  } else {
    out.embedded = embedding_mlp(time / "emb" / "timestep_embedder", features, d);
  }
  out.modulation = reshape(linear_layer(time / "linear", silu(out.embedded), 6 * d, true), {batch, 6, d});

  // The norm behind the projection keeps the text encoder's large values from upsetting training (the paper's text
  // encoder design).
  Params caption = p / "caption_projection";
  Value y = linear_layer(caption / "linear_1", in.caption, d, true, "gelu_tanh");
  y = linear_layer(caption / "linear_2", y, d, true);
  out.caption = rms_norm(y, (p / "caption_norm").get("weight", {d}), {}, 1e-5);
  if (in.mask.defined()) out.mask_bias = affine(in.mask, 10000, -10000);  // 0 for a token, -10000 for padding
  out.lengths = in.lengths;
  return out;
}

// [batch, tokens, heads · dim] -> [batch, tokens, heads, dim]
Value split_heads(Value x, int64_t heads) {
  return reshape(x, {x.shape()[0], x.shape()[1], heads, x.shape()[2] / heads});
}

// Of queries and keys over all heads, x [batch, tokens, D]: Sana-1.5 and Sprint have it.
Value maybe_qk_norm(const Params& p, const std::string& name, const SanaConfig& c, Value x) {
  return c.qk_norm ? rms_norm(x, (p / name).get("weight", {c.width()}), {}, 1e-5) : x;
}

// The paper's linear attention, with ReLU as its kernel: x [batch, tokens, D], its norm of the same shape and gate
// [batch, 1, D] -> x + gate·attention(normed).
Value self_attention(const Params& p, const SanaConfig& c, Value x, Value normed, Value gate) {
  ScopeGuard scope = p.scope();
  int64_t d = c.width();
  Value q = maybe_qk_norm(p, "norm_q", c, linear_layer(p / "to_q", normed, d, c.attention_bias));
  Value k = maybe_qk_norm(p, "norm_k", c, linear_layer(p / "to_k", normed, d, c.attention_bias));
  Value v = linear_layer(p / "to_v", normed, d, c.attention_bias);
  Value y = linear_attention(split_heads(q, c.heads), split_heads(k, c.heads), split_heads(v, c.heads));
  y = reshape(y, x.shape());
  if (!c.fp16_clamp) return linear_add_layer(p / "to_out" / 0, y, true, x, gate);
  return x + gate * clamp(linear_layer(p / "to_out" / 0, y, d, true), -65504, 65504);
}

// Ordinary softmax attention from x [batch, tokens, D], not normed, to the caption -> x + attention(x, caption).
Value cross_attention(const Params& p, const SanaConfig& c, Value x, const Conditioning& cond) {
  ScopeGuard scope = p.scope();
  int64_t d = c.width();
  Value q = maybe_qk_norm(p, "norm_q", c, linear_layer(p / "to_q", x, d, true));
  Value k = maybe_qk_norm(p, "norm_k", c, linear_layer(p / "to_k", cond.caption, d, true));
  Value v = linear_layer(p / "to_v", cond.caption, d, true);
  AttentionOptions options{.scale = 1 / std::sqrt(static_cast<double>(c.cross_head_dim))};
  Value y = attention(split_heads(q, c.cross_heads), split_heads(k, c.cross_heads), split_heads(v, c.cross_heads),
                      cond.mask_bias, options, cond.lengths);
  return linear_add_layer(p / "to_out" / 0, reshape(y, x.shape()), true, x);
}

// The paper's Mix-FFN: a gated feed-forward with a 3x3 depthwise convolution inside, which brings in the tokens around
// and so the place. x and normed [batch, tokens, D], pictures of `height` rows of tokens; gate [batch, 1, D]
// -> x + gate·feed-forward(normed).
Value mix_ffn(const Params& p, const SanaConfig& c, Value x, Value normed, Value gate, int64_t height) {
  ScopeGuard scope = p.scope();
  int64_t batch = x.shape()[0], width = x.shape()[1] / height, d = c.width();
  auto hidden = static_cast<int64_t>(c.mlp_ratio * static_cast<double>(d));
  Value a = conv1x1_layer(p / "conv_inverted", reshape(normed, {batch, height, width, d}), 2 * hidden, true, "silu");
  Params depth = p / "conv_depth", point = p / "conv_point";
  a = depthwise_glu(a, depth.get("weight", {2 * hidden, 1, 3, 3}), depth.get("bias", {2 * hidden}));
  Value weight = point.get_as("weight", {d, hidden, 1, 1}, {d, hidden});
  return linear_add(reshape(a, x.shape().with(-1, hidden)), weight, {}, x, gate);
}

// Every block's scale_shift_table + the modulation, in one sum: [batch, 6·layers, D].
Value block_modulations(const Params& p, const SanaConfig& c, const Conditioning& cond) {
  int64_t d = c.width();
  Value modulation = cond.modulation;
  std::vector<Value> tables;
  for (int64_t i = 0; i < c.layers; ++i) {
    tables.push_back((p / "transformer_blocks" / static_cast<int>(i)).f32("scale_shift_table", {6, d}));
  }
  Value all = cast(reshape(concat(tables, 0), {1, c.layers, 6, d}), modulation.dtype());
  Value sum = all + reshape(modulation, {modulation.shape()[0], 1, 6, d});
  return reshape(sum, {modulation.shape()[0], 6 * c.layers, d});
}

// x [batch, tokens, D]; modulation [batch, 6, D]: shift, scale and gate of the attention, then of the feed-forward.
Value block(const Params& p, const SanaConfig& c, Value x, const Conditioning& cond, Value modulation, int64_t height) {
  ScopeGuard scope = p.scope();
  std::vector<Value> m = split(modulation, 1, 6);  // each [batch, 1, D]
  x = self_attention(p / "attn1", c, x, layer_norm(x, c.norm_eps, m[1], m[0]), m[2]);
  x = cross_attention(p / "attn2", c, x, cond);
  return mix_ffn(p / "ff", c, x, layer_norm(x, c.norm_eps, m[4], m[3]), m[5], height);
}

// [batch, H, W, C] -> [batch, H/p, W/p, C·p²] in the order of a convolution weight's [C, p, p].
Value patchify(Value x, int64_t patch) { return patch == 1 ? x : pixel_unshuffle(x, patch); }

// [batch, h, w, p·p·C] with channels last within a patch -> [batch, h·p, w·p, C].
Value unpatchify(Value x, int64_t patch, int64_t channels) {
  const Shape s = x.shape();
  Value y = reshape(x, {s[0], s[1], s[2], patch, patch, channels});
  return reshape(permute(y, {0, 1, 3, 2, 4, 5}), {s[0], s[1] * patch, s[2] * patch, channels});
}

}  // namespace

Value build_sana(const Params& p, const SanaConfig& c, const SanaInputs& in) {
  int64_t batch = in.latents.shape()[0], d = c.width(), patch = c.patch_size;
  int64_t height = in.latents.shape()[1] / patch, width = in.latents.shape()[2] / patch, tokens = height * width;
  Conditioning cond = build_conditioning(p, c, in);

  // A convolution as wide as its stride makes a token of each patch.
  Params embed = p / "patch_embed" / "proj";
  Value weight = embed.get_as("weight", {d, c.in_channels, patch, patch}, {d, c.in_channels * patch * patch});
  Value x = linear(reshape(patchify(in.latents, patch), {batch, tokens, c.in_channels * patch * patch}), weight,
                   embed.get("bias", {d}));  // [batch, tokens, D]
  if (c.interpolation_scale) x = x + cast(position_embedding(p.graph(), c, height, width), x.dtype());

  Value modulations = block_modulations(p, c, cond);
  for (int64_t i = 0; i < c.layers; ++i) {
    Value modulation = slice(modulations, 1, 6 * i, 6 * (i + 1));
    x = block(p / "transformer_blocks" / static_cast<int>(i), c, x, cond, modulation, height);
  }

  // The last norm is modulated by the time embedding itself.
  ScopeGuard scope = (p / "proj_out").scope();
  Value table = cast(reshape(p.f32("scale_shift_table", {2, d}), {1, 2, d}), x.dtype());
  std::vector<Value> m = split(table + reshape(cond.embedded, {batch, 1, d}), 1, 2);  // shift, scale
  x = layer_norm(x, c.norm_eps, m[1], m[0]);
  x = linear_layer(p / "proj_out", x, patch * patch * c.out_channels, true);
  x = reshape(x, {batch, height, width, patch * patch * c.out_channels});
  return patch == 1 ? x : unpatchify(x, patch, c.out_channels);
}

}  // namespace kinora
