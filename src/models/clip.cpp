#include "models/clip.h"

#include <algorithm>
#include <cmath>

#include "nn/layers.h"

namespace kinora {

ClipTextConfig read_clip_text_config(const Config& json) {
  ClipTextConfig c;
  Config text = json.has("text_config") ? json.child("text_config") : json;
  Config over = json.child("text_config_dict");  // old files: what is here goes before text_config
  auto integer = [&](const char* key, int64_t low, int64_t high, int64_t fallback) {
    return over.integer(key, low, high, text.integer(key, low, high, fallback));
  };
  c.vocab_size = integer("vocab_size", 1, 1 << 24, c.vocab_size);
  c.hidden_size = integer("hidden_size", 1, 1 << 16, c.hidden_size);
  c.intermediate_size = integer("intermediate_size", 1, 1 << 20, c.intermediate_size);
  c.layers = integer("num_hidden_layers", 1, 512, c.layers);
  c.heads = integer("num_attention_heads", 1, 1024, c.heads);
  c.max_positions = integer("max_position_embeddings", 1, 1 << 16, c.max_positions);
  c.eos_token_id = integer("eos_token_id", 0, 1 << 24, c.eos_token_id);
  c.layer_norm_eps = over.real("layer_norm_eps", 0, 1, text.real("layer_norm_eps", 0, 1, c.layer_norm_eps));
  c.activation = over.text("hidden_act", text.text("hidden_act", c.activation));
  constexpr const char* kKnown[] = {"quick_gelu", "gelu", "gelu_new", "relu"};
  if (std::find(std::begin(kKnown), std::end(kKnown), c.activation) == std::end(kKnown)) {
    fail(ErrorKind::model, json.name() + ": hidden_act \"" + c.activation.substr(0, 40) +
                               "\" is not supported (quick_gelu, gelu, gelu_new, relu)");
  }
  if (c.hidden_size % c.heads != 0)
    fail(ErrorKind::model, json.name() + ": hidden_size must be a multiple of num_attention_heads");
  return c;
}

std::vector<int32_t> clip_pooled_positions(const Tensor& ids, const ClipTextConfig& config) {
  int64_t batch = ids.shape()[0], tokens = ids.shape()[1];
  std::vector<int32_t> positions;
  for (int64_t b = 0; b < batch; ++b) {
    const int32_t *row = ids.data<int32_t>() + b * tokens, *end = row + tokens;
    const int32_t* at =
        config.eos_token_id == 2 ? std::max_element(row, end) : std::find(row, end, config.eos_token_id);
    positions.push_back(at == end ? 0 : static_cast<int32_t>(at - row));
  }
  return positions;
}

namespace {

// x f32 -> f32.
Value norm_layer(const Params& p, const ClipTextConfig& c, Value x) {
  ScopeGuard scope = p.scope();
  Value weight = affine(p.f32("weight", {c.hidden_size}), 1, -1);  // layer_norm multiplies by one plus its scale
  return layer_norm(x, c.layer_norm_eps, weight, p.f32("bias", {c.hidden_size}));
}

Value self_attention(const Params& p, const ClipTextConfig& c, Value x) {
  ScopeGuard scope = p.scope();
  int64_t batch = x.shape()[0], tokens = x.shape()[1], dim = c.hidden_size / c.heads;
  auto project = [&](const char* name) {
    return reshape(linear_layer(p / name, x, c.hidden_size, true), {batch, tokens, c.heads, dim});
  };
  AttentionOptions options{.scale = 1 / std::sqrt(static_cast<double>(dim)), .causal = true};
  Value y = attention(project("q_proj"), project("k_proj"), project("v_proj"), {}, options);
  return linear_layer(p / "out_proj", reshape(y, {batch, tokens, c.hidden_size}), c.hidden_size, true);
}

Value mlp(const Params& p, const ClipTextConfig& c, Value x) {
  ScopeGuard scope = p.scope();
  Value h = linear_layer(p / "fc1", x, c.intermediate_size, true);
  return linear_layer(p / "fc2", activation(h, c.activation), c.hidden_size, true);
}

}  // namespace

ClipTextOutput build_clip_text(const Params& params, const ClipTextConfig& c, Value ids, Value pooled_rows,
                               DType dtype) {
  int64_t batch = ids.shape()[0], tokens = ids.shape()[1];
  if (tokens > c.max_positions) {
    fail(ErrorKind::usage,
         "CLIP reads at most " + std::to_string(c.max_positions) + " tokens, not " + std::to_string(tokens));
  }
  bool prefixed = (params / "text_model" / "final_layer_norm").has("weight");
  Params p = prefixed ? params / "text_model" : params;
  Params embeddings = p / "embeddings";
  Value table = (embeddings / "token_embedding").get("weight", {c.vocab_size, c.hidden_size});
  Value places = (embeddings / "position_embedding").f32("weight", {c.max_positions, c.hidden_size});
  Value x = gather(table, ids) + slice(places, 0, 0, tokens);  // [batch, tokens, hidden] f32

  for (int64_t i = 0; i < c.layers; ++i) {
    Params layer = p / "encoder" / "layers" / static_cast<int>(i);
    ScopeGuard scope = layer.scope();
    Value h = cast(norm_layer(layer / "layer_norm1", c, x), dtype);
    x = x + cast(self_attention(layer / "self_attn", c, h), DType::f32);
    h = cast(norm_layer(layer / "layer_norm2", c, x), dtype);
    x = x + cast(mlp(layer / "mlp", c, h), DType::f32);
  }
  Value hidden = norm_layer(p / "final_layer_norm", c, x);
  return {hidden, gather(reshape(hidden, {batch * tokens, c.hidden_size}), pooled_rows)};
}

}  // namespace kinora
