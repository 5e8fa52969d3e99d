#include "models/t5.h"

#include <algorithm>
#include <cmath>

#include "nn/layers.h"

namespace kinora {

T5Config read_t5_config(const Config& json) {
  T5Config c;
  c.vocab_size = json.integer("vocab_size", 1, 1 << 24, c.vocab_size);
  c.d_model = json.integer("d_model", 1, 1 << 16, c.d_model);
  c.d_kv = json.integer("d_kv", 1, 1024, c.d_kv);
  c.d_ff = json.integer("d_ff", 1, 1 << 20, c.d_ff);
  c.layers = json.integer("num_layers", 1, 512, c.layers);
  c.heads = json.integer("num_heads", 1, 1024, c.heads);
  c.buckets = json.integer("relative_attention_num_buckets", 4, 1 << 16, c.buckets);
  c.max_distance = json.integer("relative_attention_max_distance", 2, 1 << 24, c.max_distance);
  c.layer_norm_eps = json.real("layer_norm_epsilon", 0, 1, c.layer_norm_eps);
  std::string projection = json.text("feed_forward_proj", c.activation);
  c.gated = projection.starts_with("gated-");
  c.activation = c.gated ? projection.substr(6) : projection;
  if (projection == "gated-gelu") c.activation = "gelu_new";
  constexpr const char* kKnown[] = {"relu", "gelu", "gelu_new", "silu"};
  if (std::find(std::begin(kKnown), std::end(kKnown), c.activation) == std::end(kKnown)) {
    fail(ErrorKind::model, json.name() + ": feed_forward_proj \"" + projection.substr(0, 40) +
                               "\" is not supported (relu, gelu, gelu_new, silu, each with or without gated-)");
  }
  if (c.buckets % 4 != 0 || c.max_distance <= c.buckets / 4) {
    fail(ErrorKind::model, json.name() +
                               ": relative_attention_num_buckets must be a multiple of 4 and less than four times "
                               "relative_attention_max_distance");
  }
  return c;
}

int64_t t5_position_bucket(int64_t distance, int64_t buckets, int64_t max_distance) {
  int64_t half = buckets / 2, exact = half / 2, a = std::abs(distance), base = distance > 0 ? half : 0;
  if (a < exact) return base + a;
  // In float32 and in this order, as PyTorch computes it: where one bucket ends depends on the rounding.
  float part = std::log(static_cast<float>(a) / static_cast<float>(exact)) /
               static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(exact)));
  auto steps = static_cast<int64_t>(part * static_cast<float>(half - exact));
  return base + std::min(exact + steps, half - 1);
}

namespace {

// [1, heads, tokens, tokens] f32.
Value position_bias(const Params& p, const T5Config& c, int64_t tokens) {
  ScopeGuard scope = p.scope();
  std::vector<int32_t> buckets;
  for (int64_t query = 0; query < tokens; ++query) {
    for (int64_t key = 0; key < tokens; ++key) {
      buckets.push_back(static_cast<int32_t>(t5_position_bucket(key - query, c.buckets, c.max_distance)));
    }
  }
  Value ids = p.graph().constant(Tensor::from({tokens, tokens}, buckets));
  Value bias = gather(p.get("weight", {c.buckets, c.heads}), ids);  // [tokens, tokens, heads]
  return reshape(permute(bias, {2, 0, 1}), {1, c.heads, tokens, tokens});
}

// x [batch, tokens, d_model] f32 -> `dtype`.
Value t5_norm(const Params& p, const T5Config& c, Value x, DType dtype) {
  ScopeGuard scope = p.scope();
  return cast(rms_norm(x, p.get("weight", {c.d_model}), {}, c.layer_norm_eps), dtype);
}

Value self_attention(const Params& p, const T5Config& c, Value x, Value bias) {
  ScopeGuard scope = p.scope();
  int64_t batch = x.shape()[0], tokens = x.shape()[1], inner = c.heads * c.d_kv;
  auto project = [&](const char* name) {
    return reshape(linear_layer(p / name, x, inner, false), {batch, tokens, c.heads, c.d_kv});
  };
  Value y = attention(project("q"), project("k"), project("v"), bias, {});  // [batch, tokens, heads, d_kv]
  return linear_layer(p / "o", reshape(y, {batch, tokens, inner}), c.d_model, false);
}

Value feed_forward(const Params& p, const T5Config& c, Value x) {
  ScopeGuard scope = p.scope();
  Value h = activation(linear_layer(p / (c.gated ? "wi_0" : "wi"), x, c.d_ff, false), c.activation);
  if (c.gated) h = h * linear_layer(p / "wi_1", x, c.d_ff, false);  // [batch, tokens, d_ff]
  // What float16 cannot hold any more: PyTorch keeps this product in float32 too.
  if (h.dtype() == DType::f16) h = cast(h, DType::f32);
  return linear_layer(p / "wo", h, c.d_model, false);
}

}  // namespace

Value build_t5_encoder(const Params& p, const T5Config& c, Value ids, Value mask, DType dtype) {
  Params encoder = p / "encoder";
  // The embedding is stored under either name or both.
  Params embedding = (p / "shared").has("weight") ? p / "shared" : encoder / "embed_tokens";
  Value x = gather(embedding.get("weight", {c.vocab_size, c.d_model}), ids);  // [batch, tokens, d_model] f32
  Params first = encoder / "block" / 0 / "layer" / 0 / "SelfAttention" / "relative_attention_bias";
  int64_t batch = ids.shape()[0], tokens = ids.shape()[1];
  Value bias = position_bias(first, c, tokens);
  // 0 for a token, as good as minus infinity for padding.
  if (mask.defined()) bias = bias + reshape(affine(mask, 1e30, -1e30), {batch, 1, 1, tokens});

  for (int64_t i = 0; i < c.layers; ++i) {
    Params block = encoder / "block" / static_cast<int>(i) / "layer";
    ScopeGuard scope = block.scope();
    Value h = self_attention(block / 0 / "SelfAttention", c, t5_norm(block / 0 / "layer_norm", c, x, dtype), bias);
    x = x + cast(h, DType::f32);
    h = feed_forward(block / 1 / "DenseReluDense", c, t5_norm(block / 1 / "layer_norm", c, x, dtype));
    x = x + cast(h, DType::f32);
  }
  return t5_norm(encoder / "final_layer_norm", c, x, dtype);
}

}  // namespace kinora
