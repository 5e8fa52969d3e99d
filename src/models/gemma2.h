// Gemma 2 as a text encoder: the decoder without its head ("Gemma 2: Improving Open Language Models at a Practical
// Size", arXiv:2408.00118). Tensor names are those of transformers' Gemma2Model.
#pragma once

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

struct Gemma2Config {
  int64_t vocab_size = 256000, hidden_size = 2304, intermediate_size = 9216, layers = 26;
  int64_t heads = 8, kv_heads = 4, head_dim = 256;
  double rms_norm_eps = 1e-6, rope_theta = 10000, query_pre_attn_scalar = 256;
  double attn_softcap = 50;  // 0: none
  int64_t sliding_window = 4096;
  std::vector<bool> sliding;  // per layer: sliding window or global
  std::string activation = "gelu_pytorch_tanh";
};

// Throws Error(model) for a value that is out of range or not supported.
Gemma2Config read_gemma2_config(const Config& json);

// ids [batch, tokens] i32, mask [batch, tokens] f32 (1 for a token, 0 for padding).
// Returns the last hidden state after the final norm, [batch, tokens, hidden_size] of `dtype`.
Value build_gemma2(const Params& params, const Gemma2Config& config, Value ids, Value mask, DType dtype = DType::f32);

}  // namespace kinora
