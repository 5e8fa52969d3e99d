#include "models/gemma2.h"

#include <cmath>

#include "nn/layers.h"

namespace kinora {

Gemma2Config read_gemma2_config(const Config& json) {
  Gemma2Config c;
  c.vocab_size = json.integer("vocab_size", 1, 1 << 24, c.vocab_size);
  c.hidden_size = json.integer("hidden_size", 1, 1 << 16, c.hidden_size);
  c.intermediate_size = json.integer("intermediate_size", 1, 1 << 20, c.intermediate_size);
  c.layers = json.integer("num_hidden_layers", 1, 512, c.layers);
  c.heads = json.integer("num_attention_heads", 1, 1024, c.heads);
  c.kv_heads = json.integer("num_key_value_heads", 1, 1024, c.kv_heads);
  c.head_dim = json.integer("head_dim", 2, 1024, c.head_dim);
  c.rms_norm_eps = json.real("rms_norm_eps", 0, 1, c.rms_norm_eps);
  // transformers 5 moved it into an object of its own.
  c.rope_theta =
      json.real("rope_theta", 1, 1e12, json.child("rope_parameters").real("rope_theta", 1, 1e12, c.rope_theta));
  c.query_pre_attn_scalar = json.real("query_pre_attn_scalar", 1e-6, 1e9, c.query_pre_attn_scalar);
  c.attn_softcap =
      json.real("attn_logit_softcapping", 0, 1e9, json.keys().empty() || json.has("attn_logit_softcapping") ? 50 : 0);
  c.sliding_window = json.integer("sliding_window", 1, 1 << 24, c.sliding_window);
  c.activation = json.text("hidden_activation", c.activation);
  if (c.heads % c.kv_heads != 0)
    fail(ErrorKind::model, json.name() + ": num_attention_heads must be a multiple of num_key_value_heads");
  if (c.head_dim % 2 != 0) fail(ErrorKind::model, json.name() + ": head_dim must be even");
  if (json.boolean("attention_bias", false))
    fail(ErrorKind::model, json.name() + ": attention_bias true is not supported");
  // Without a list, Gemma 2 alternates, beginning with a sliding layer.
  std::vector<std::string> types;
  if (json.has("layer_types")) types = json.texts("layer_types", static_cast<size_t>(c.layers), "");
  for (int64_t i = 0; i < c.layers; ++i) {
    c.sliding.push_back(types.empty() ? i % 2 == 0 : types[static_cast<size_t>(i)] == "sliding_attention");
  }
  return c;
}

namespace {

// Gemma's norm multiplies by one plus its weight.
Value gemma_norm(const Params& p, Value x, double eps) {
  return rms_norm(x, p.get("weight", {x.shape()[-1]}), {}, eps, 1);
}

struct Rotation {
  Value cos, sin;  // [tokens, head_dim]
};

Rotation rotation(Graph& graph, const Gemma2Config& c, int64_t tokens) {
  int64_t half = c.head_dim / 2;
  std::vector<float> cosines, sines;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < c.head_dim; ++i) {
      auto exponent = static_cast<float>(2 * (i % half)) / static_cast<float>(c.head_dim);
      float frequency = 1.0f / std::pow(static_cast<float>(c.rope_theta), exponent);
      float angle = static_cast<float>(t) * frequency;
      cosines.push_back(std::cos(angle));
      sines.push_back(std::sin(angle));
    }
  }
  return {graph.constant(Tensor::from({tokens, c.head_dim}, cosines)),
          graph.constant(Tensor::from({tokens, c.head_dim}, sines))};
}

Value self_attention(const Params& p, const Gemma2Config& c, Value x, const Rotation& r, Value mask_bias,
                     bool sliding) {
  ScopeGuard scope = p.scope();
  int64_t batch = x.shape()[0], tokens = x.shape()[1];
  auto project = [&](const char* name, int64_t heads) {
    return reshape(linear_layer(p / name, x, heads * c.head_dim, false), {batch, tokens, heads, c.head_dim});
  };
  Value q = rope(project("q_proj", c.heads), r.cos, r.sin);
  Value k = rope(project("k_proj", c.kv_heads), r.cos, r.sin);
  Value v = project("v_proj", c.kv_heads);
  AttentionOptions options{.scale = 1 / std::sqrt(c.query_pre_attn_scalar),
                           .softcap = c.attn_softcap,
                           .causal = true,
                           .window = sliding ? c.sliding_window : 0};
  Value y = attention(q, k, v, mask_bias, options);
  return linear_layer(p / "o_proj", reshape(y, {batch, tokens, c.heads * c.head_dim}), c.hidden_size, false);
}

Value mlp(const Params& p, const Gemma2Config& c, Value x) {
  ScopeGuard scope = p.scope();
  Value gate = linear_layer(p / "gate_proj", x, c.intermediate_size, false);
  Value up = linear_layer(p / "up_proj", x, c.intermediate_size, false);
  return linear_layer(p / "down_proj", activation(gate, c.activation) * up, c.hidden_size, false);
}

}  // namespace

Value build_gemma2(const Params& p, const Gemma2Config& c, Value ids, Value mask, DType dtype) {
  Value table = (p / "embed_tokens").get("weight", {c.vocab_size, c.hidden_size});
  // transformers rounds the factor sqrt(hidden_size) to the weights' type before it multiplies.
  Value factor = cast(cast(p.graph().scalar(std::sqrt(static_cast<double>(c.hidden_size))), dtype), DType::f32);
  Value x = cast(gather(table, ids, DType::f32) * factor, dtype);  // [batch, tokens, hidden]
  Rotation rotation_table = rotation(p.graph(), c, ids.shape()[1]);
  Value mask_bias = affine(mask, 1e30, -1e30);  // 0 for a token, as good as minus infinity for padding

  for (int64_t i = 0; i < c.layers; ++i) {
    Params layer = p / "layers" / static_cast<int>(i);
    ScopeGuard scope = layer.scope();
    Value h = gemma_norm(layer / "input_layernorm", x, c.rms_norm_eps);
    h = self_attention(layer / "self_attn", c, h, rotation_table, mask_bias, c.sliding[static_cast<size_t>(i)]);
    x = x + gemma_norm(layer / "post_attention_layernorm", h, c.rms_norm_eps);
    h = mlp(layer / "mlp", c, gemma_norm(layer / "pre_feedforward_layernorm", x, c.rms_norm_eps));
    x = x + gemma_norm(layer / "post_feedforward_layernorm", h, c.rms_norm_eps);
  }
  return gemma_norm(p / "norm", x, c.rms_norm_eps);
}

}  // namespace kinora
