// The encoder of T5 and T5 v1.1 ("Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
// arXiv:1910.10683), of any size. Tensor names are those of transformers' T5EncoderModel.
#pragma once

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

struct T5Config {
  int64_t vocab_size = 32128, d_model = 512, d_kv = 64, d_ff = 2048, layers = 6, heads = 8;
  int64_t buckets = 32, max_distance = 128;  // of relative positions
  double layer_norm_eps = 1e-6;
  std::string activation = "relu";
  bool gated = false;  // v1.1: act(wi_0 x) · wi_1 x instead of act(wi x)
};

// Reads T5's config.json, "feed_forward_proj" as transformers does: "gated-gelu" is the tanh form of GELU. Throws
// Error(model) for a value that is out of range or not supported.
T5Config read_t5_config(const Config& json);

// The bucket of a key `distance` tokens after its query (before it: negative): half of the buckets are for keys after
// the query; of each half the first half are exact distances, the rest grows with the logarithm up to max_distance.
int64_t t5_position_bucket(int64_t distance, int64_t buckets, int64_t max_distance);

// ids [batch, tokens] i32; mask [batch, tokens] f32 (1 for a token, 0 for padding), or undefined: then padding is
// attended like any token, as Open-Sora runs the model. Scores are not scaled; every layer adds the position bias of
// the first. The residual stream is float32 also when `dtype` is not (in PyTorch it becomes so in float16, where the
// feed-forward's output product is kept in float32).
// Returns the last hidden state after the final norm, [batch, tokens, d_model] of `dtype`.
Value build_t5_encoder(const Params& params, const T5Config& config, Value ids, Value mask = {},
                       DType dtype = DType::f32);

}  // namespace kinora
