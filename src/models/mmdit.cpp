#include "models/mmdit.h"

#include <cmath>

#include "nn/layers.h"

namespace kinora {
namespace {

constexpr double kNormEps = 1e-6;

int64_t count_blocks(const Weights& weights, const std::string& name, const std::string& probe) {
  int64_t count = 0;
  while (weights.find(name + "." + std::to_string(count) + "." + probe)) ++count;
  return count;
}

Shape shape_of(const Weights& weights, const std::string& name, int rank) {
  const Tensor* tensor = weights.find(name);
  if (!tensor || tensor->shape().rank() != rank) {
    fail(ErrorKind::model, weights.source() + " holds no Open-Sora or Flux transformer: tensor '" + name + "' " +
                               (tensor ? "has shape " + tensor->shape().str() : "is missing"));
  }
  return weights.shape_of(name);
}

void check_config(const MmditConfig& c, const std::string& where) {
  auto refuse = [&](const std::string& what) { fail(ErrorKind::model, where + ": " + what); };
  if (c.heads < 1 || c.hidden < 1 || c.hidden % c.heads != 0) refuse("hidden_size must be a multiple of num_heads");
  if (c.mlp_hidden < 1) refuse("the MLP has no channels");
  int64_t sum = 0;
  for (int64_t d : c.axes_dim) {
    if (d < 2 || d % 2 != 0) refuse("each of axes_dim must be even and at least 2");
    sum += d;
  }
  if (sum != c.head_dim()) {
    refuse("axes_dim adds up to " + std::to_string(sum) + ", but a head has " + std::to_string(c.head_dim()) +
           " channels (give axes_dim in config.json)");
  }
  if (c.in_channels < 1 || c.in_channels % (c.patch_size * c.patch_size) != 0)
    refuse("in_channels must be a multiple of patch_size²");
  if (c.depth + c.single_depth < 1) refuse("a model without blocks");
}

}  // namespace

MmditConfig infer_mmdit_config(const Weights& weights) {
  MmditConfig c;
  Shape image = shape_of(weights, "img_in.weight", 2);
  c.hidden = image[0];
  c.in_channels = image[1];
  c.text_dim = shape_of(weights, "txt_in.weight", 2)[1];
  c.pooled_dim = shape_of(weights, "vector_in.in_layer.weight", 2)[1];
  c.depth = count_blocks(weights, "double_blocks", "img_mod.lin.weight");
  c.single_depth = count_blocks(weights, "single_blocks", "modulation.lin.weight");
  std::string head_norm = c.depth > 0 ? "double_blocks.0.img_attn.norm.query_norm.scale"  //
                                      : "single_blocks.0.norm.query_norm.scale";
  int64_t head_dim = shape_of(weights, head_norm, 1)[0];
  if (head_dim < 1 || c.hidden % head_dim != 0) {
    fail(ErrorKind::model, weights.source() + ": '" + head_norm + "' does not divide the model's width");
  }
  c.heads = c.hidden / head_dim;
  c.axes_dim = {head_dim / 8, head_dim * 7 / 16, head_dim * 7 / 16};
  if (c.depth > 0) {
    c.mlp_hidden = shape_of(weights, "double_blocks.0.img_mlp.0.weight", 2)[0];
    c.fused_qkv = weights.find("double_blocks.0.img_attn.qkv.weight") != nullptr;
    c.qkv_bias = weights.find(std::string("double_blocks.0.img_attn.") + (c.fused_qkv ? "qkv" : "q_proj") + ".bias");
  } else {
    c.mlp_hidden = shape_of(weights, "single_blocks.0.linear2.weight", 2)[1] - c.hidden;
    c.fused_qkv = weights.find("single_blocks.0.linear1.weight") != nullptr;
  }
  c.interleaved_rope = c.fused_qkv;
  c.guidance_embed = weights.find("guidance_in.in_layer.weight") != nullptr;
  c.cond_embed = weights.find("cond_in.weight") != nullptr;
  if (c.cond_embed) {
    int64_t extra = shape_of(weights, "cond_in.weight", 2)[1] - c.in_channels;
    if (extra != 1 && extra != 4) {
      fail(ErrorKind::model, weights.source() + ": 'cond_in.weight' fits neither patch size 1 nor 2");
    }
    c.patch_size = extra == 1 ? 1 : 2;
  }
  return c;
}

MmditConfig read_mmdit_config(const Config& json, const Weights& weights) {
  MmditConfig c = infer_mmdit_config(weights);
  c.in_channels = json.integer("in_channels", 1, 1 << 16, c.in_channels);
  c.patch_size = json.integer("patch_size", 1, 2, c.patch_size);
  c.hidden = json.integer("hidden_size", 1, 1 << 16, c.hidden);
  c.heads = json.integer("num_heads", 1, 1024, c.heads);
  if (json.has("mlp_ratio")) {
    c.mlp_hidden = static_cast<int64_t>(static_cast<double>(c.hidden) * json.real("mlp_ratio", 0.01, 64, 4));
  }
  c.depth = json.integer("depth", 0, 1024, c.depth);
  c.single_depth = json.integer("depth_single_blocks", 0, 1024, c.single_depth);
  c.text_dim = json.integer("context_in_dim", 1, 1 << 16, c.text_dim);
  c.pooled_dim = json.integer("vec_in_dim", 1, 1 << 16, c.pooled_dim);
  std::vector<int64_t> axes =
      json.integers("axes_dim", 2, 1 << 16, std::vector<int64_t>(c.axes_dim.begin(), c.axes_dim.end()));
  if (axes.size() != 3) fail(ErrorKind::model, json.name() + ": axes_dim must list three numbers");
  std::copy(axes.begin(), axes.end(), c.axes_dim.begin());
  c.theta = json.real("theta", 1, 1e9, c.theta);
  c.qkv_bias = json.boolean("qkv_bias", c.qkv_bias);
  c.fused_qkv = json.boolean("fused_qkv", c.fused_qkv);
  c.interleaved_rope = !json.boolean("use_liger_rope", !c.interleaved_rope);
  c.guidance_embed = json.boolean("guidance_embed", c.guidance_embed);
  c.cond_embed = json.boolean("cond_embed", c.cond_embed);
  check_config(c, json.name());
  return c;
}

MmditPositions MmditPositions::grid(int64_t frames, int64_t rows, int64_t columns) {
  auto count = [](int64_t n) {
    std::vector<double> list;
    for (int64_t i = 0; i < n; ++i) list.push_back(static_cast<double>(i));
    return list;
  };
  return {count(frames), count(rows), count(columns)};
}

Tensor rope_axis(const MmditConfig& c, int axis, const std::vector<double>& positions) {
  int64_t dim = c.axes_dim[static_cast<size_t>(axis)], half = dim / 2;
  Tensor table({static_cast<int64_t>(positions.size()), dim}, DType::f32);
  float* row = table.data<float>();
  for (double position : positions) {
    for (int64_t k = 0; k < half; ++k) {
      if (c.interleaved_rope) {
        double angle = position / std::pow(c.theta, static_cast<double>(2 * k) / static_cast<double>(dim));
        row[k] = static_cast<float>(std::cos(angle));
        row[half + k] = static_cast<float>(std::sin(angle));
      } else {
        float omega = 1 / std::pow(static_cast<float>(c.theta), static_cast<float>(2 * k) / static_cast<float>(dim));
        float angle = static_cast<float>(position) * omega;
        row[k] = std::cos(angle);
        row[half + k] = std::sin(angle);
      }
    }
    row += dim;
  }
  return table;
}

namespace {

// What every block reads.
struct Shared {
  const MmditConfig& c;
  Value vec;       // [batch, D]: silu of the sum of time, guidance and pooled text
  Value cos, sin;  // [image tokens, head_dim]; in the one-stream blocks [text + image tokens, head_dim]
};

struct Heads {
  Value q, k;  // [batch, tokens, heads, head_dim]
  Value v;     // [batch, tokens, D]
};

// The table of the grid of image tokens.
Value rope_table(const MmditConfig& c, const std::array<Value, 3>& axes, bool sine) {
  int64_t n[3] = {axes[0].shape()[0], axes[1].shape()[0], axes[2].shape()[0]};
  std::vector<Value> parts;
  for (int a = 0; a < 3; ++a) {
    int64_t half = c.axes_dim[static_cast<size_t>(a)] / 2;
    Value part = slice(axes[static_cast<size_t>(a)], 1, sine ? half : 0, sine ? 2 * half : half);
    Shape line{a == 0 ? n[0] : 1, a == 1 ? n[1] : 1, a == 2 ? n[2] : 1, half};
    parts.push_back(broadcast_to(reshape(part, line), {n[0], n[1], n[2], half}));
  }
  Value grid = reshape(concat(parts, 3), {n[0] * n[1] * n[2], c.head_dim() / 2});
  return c.interleaved_rope ? repeat_interleave(grid, 1, 2) : concat({grid, grid}, 1);
}

// With text tokens before, which are not turned.
Value with_text(Value table, int64_t text, bool sine) {
  Value still = broadcast_to(table.graph().scalar(sine ? 0 : 1), {text, table.shape()[1]});
  return concat({still, table}, 0);
}

Value embedder(const Params& p, Value x, int64_t width) {
  return linear_layer(p / "out_layer", linear_layer(p / "in_layer", x, width, true, "silu"), width, true);
}

// Shift, scale and gate, `sets` times, each [batch, 1, D].
std::vector<Value> modulation(const Params& p, const Shared& s, int sets) {
  int64_t width = 3 * sets * s.c.hidden;
  Value m = linear_layer(p / "lin", s.vec, width, true);
  return split(reshape(m, {m.shape()[0], 1, width}), 2, 3 * sets);
}

Heads to_heads(const Params& norm, const MmditConfig& c, Value q, Value k, Value v) {
  ScopeGuard scope = norm.scope();
  auto heads = [&](Value x) { return reshape(x, {x.shape()[0], x.shape()[1], c.heads, c.head_dim()}); };
  auto normed = [&](const char* name, Value x) {
    return rms_norm(heads(x), (norm / name).get("scale", {c.head_dim()}), {}, kNormEps);
  };
  return {normed("query_norm", q), normed("key_norm", k), v};
}

// Of one stream of a two-stream block; x [batch, tokens, D].
Heads stream_heads(const Params& p, const MmditConfig& c, Value x) {
  int64_t d = c.hidden;
  Params norm = p / "norm";
  if (c.fused_qkv) {
    auto part = [&](int64_t i) { return linear_part(p / "qkv", x, 3 * d, i * d, (i + 1) * d, c.qkv_bias); };
    return to_heads(norm, c, part(0), part(1), part(2));
  }
  auto project = [&](const char* name) { return linear_layer(p / name, x, d, c.qkv_bias); };
  return to_heads(norm, c, project("q_proj"), project("k_proj"), project("v_proj"));
}

void turn(const MmditConfig& c, Heads& h, Value cos, Value sin) {
  h.q = rope(h.q, cos, sin, c.interleaved_rope);
  h.k = rope(h.k, cos, sin, c.interleaved_rope);
}

// Every token sees every token. Returns [batch, tokens, D].
Value attend(const MmditConfig& c, const Heads& h) {
  Value v = reshape(h.v, h.q.shape());
  Value y = attention(h.q, h.k, v, {}, {.scale = 1 / std::sqrt(static_cast<double>(c.head_dim()))});
  return reshape(y, h.v.shape());
}

// What a stream does with its part of the attention's result; m: the modulation's six parts.
Value finish_stream(const Params& attn, const Params& mlp, const MmditConfig& c, Value x, Value attended,
                    const std::vector<Value>& m) {
  x = x + m[2] * linear_layer(attn / "proj", attended, c.hidden, true);
  Value h = linear_layer(mlp / 0, layer_norm(x, kNormEps, m[4], m[3]), c.mlp_hidden, true, "gelu_tanh");
  return x + m[5] * linear_layer(mlp / 2, h, c.hidden, true);
}

// The two streams, image and text, in place.
void double_block(const Params& p, const Shared& s, Value& image, Value& text) {
  ScopeGuard scope = p.scope();
  std::vector<Value> mi = modulation(p / "img_mod", s, 2), mt = modulation(p / "txt_mod", s, 2);
  Heads i = stream_heads(p / "img_attn", s.c, layer_norm(image, kNormEps, mi[1], mi[0]));
  Heads t = stream_heads(p / "txt_attn", s.c, layer_norm(text, kNormEps, mt[1], mt[0]));
  turn(s.c, i, s.cos, s.sin);
  Value y = attend(s.c, {concat({t.q, i.q}, 1), concat({t.k, i.k}, 1), concat({t.v, i.v}, 1)});
  int64_t n = text.shape()[1];
  image = finish_stream(p / "img_attn", p / "img_mlp", s.c, image, slice(y, 1, n, y.shape()[1]), mi);
  text = finish_stream(p / "txt_attn", p / "txt_mlp", s.c, text, slice(y, 1, 0, n), mt);
}

// x [batch, text + image tokens, D]
Value single_block(const Params& p, const Shared& s, Value x) {
  ScopeGuard scope = p.scope();
  int64_t d = s.c.hidden, wide = s.c.mlp_hidden;
  std::vector<Value> m = modulation(p / "modulation", s, 1);
  Value h = layer_norm(x, kNormEps, m[1], m[0]), q, k, v, mlp;
  if (s.c.fused_qkv) {
    Params all = p / "linear1";
    int64_t out = 3 * d + wide;
    q = linear_part(all, h, out, 0, d, true);
    k = linear_part(all, h, out, d, 2 * d, true);
    v = linear_part(all, h, out, 2 * d, 3 * d, true);
    mlp = linear_part(all, h, out, 3 * d, out, true, "gelu_tanh");
  } else {
    q = linear_layer(p / "q_proj", h, d, true);
    k = linear_layer(p / "k_proj", h, d, true);
    v = linear_part(p / "v_mlp", h, d + wide, 0, d, true);
    mlp = linear_part(p / "v_mlp", h, d + wide, d, d + wide, true, "gelu_tanh");
  }
  Heads heads = to_heads(p / "norm", s.c, q, k, v);
  turn(s.c, heads, s.cos, s.sin);
  Value attended = attend(s.c, heads);
  return x + m[2] * linear_layer(p / "linear2", concat({attended, mlp}, 2), d, true);
}

Shared build_shared(const Params& p, const MmditConfig& c, const MmditInputs& in) {
  DType dtype = in.image.dtype();
  auto features = [&](Value t) { return cast(timestep_features(affine(t, 1000, 0)), dtype); };
  Value vec = embedder(p / "time_in", features(in.timestep), c.hidden);
  if (c.guidance_embed) vec = vec + embedder(p / "guidance_in", features(in.guidance), c.hidden);
  vec = vec + embedder(p / "vector_in", in.pooled, c.hidden);
  return {c, silu(vec), rope_table(c, in.axes, false), rope_table(c, in.axes, true)};
}

}  // namespace

Value build_mmdit(const Params& p, const MmditConfig& c, const MmditInputs& in) {
  check_config(c, "the transformer's config");
  Shared s = build_shared(p, c, in);
  Value image = linear_layer(p / "img_in", in.image, c.hidden, true);  // [batch, tokens, D]
  if (c.cond_embed) image = image + linear_layer(p / "cond_in", in.cond, c.hidden, true);
  Value text = linear_layer(p / "txt_in", in.text, c.hidden, true);  // [batch, text tokens, D]
  for (int i = 0; i < static_cast<int>(c.depth); ++i) double_block(p / "double_blocks" / i, s, image, text);

  int64_t n = text.shape()[1];
  Value x = concat({text, image}, 1);  // [batch, text + image tokens, D]
  s.cos = with_text(s.cos, n, false);
  s.sin = with_text(s.sin, n, true);
  for (int i = 0; i < static_cast<int>(c.single_depth); ++i) x = single_block(p / "single_blocks" / i, s, x);
  x = slice(x, 1, n, x.shape()[1]);

  Params last = p / "final_layer";
  ScopeGuard scope = last.scope();
  Value m = linear_layer(last / "adaLN_modulation" / 1, s.vec, 2 * c.hidden, true);
  std::vector<Value> parts = split(reshape(m, {m.shape()[0], 1, 2 * c.hidden}), 2, 2);  // shift, scale
  return linear_layer(last / "linear", layer_norm(x, kNormEps, parts[1], parts[0]), c.in_channels, true);
}

}  // namespace kinora
