// CLIP's text tower ("Learning Transferable Visual Models From Natural Language Supervision", arXiv:2103.00020). Tensor
// names are those of transformers' CLIPTextModel, with or without "text_model." in front.
#pragma once

#include <vector>

#include "graph/graph.h"
#include "io/config.h"
#include "nn/params.h"

namespace kinora {

struct ClipTextConfig {
  int64_t vocab_size = 49408, hidden_size = 512, intermediate_size = 2048, layers = 12, heads = 8, max_positions = 77;
  double layer_norm_eps = 1e-5;
  std::string activation = "quick_gelu";
  int64_t eos_token_id = 49407;  // 2 in old configs: see clip_pooled_positions
};

// Reads the config of a text model, or of a whole CLIP model, whose "text_config" (and "text_config_dict") it takes.
// Throws Error(model) for a value that is out of range or not supported.
ClipTextConfig read_clip_text_config(const Config& json);

// Per text the place whose hidden state stands for the whole: the first eos_token_id (0 when there is none), or the
// first of the highest id when the config says eos_token_id 2, as configs did before they told the true one.
// ids [batch, tokens] i32.
std::vector<int32_t> clip_pooled_positions(const Tensor& ids, const ClipTextConfig& config);

struct ClipTextOutput {
  Value hidden;  // [batch, tokens, hidden_size] f32, after the final norm
  Value pooled;  // [batch, hidden_size] f32
};

// ids [batch, tokens] i32, tokens at most max_positions; pooled_rows [batch] i32: row b·tokens + place of each text.
// Linear layers and attention work in `dtype`, the residual stream and the norms in float32.
ClipTextOutput build_clip_text(const Params& params, const ClipTextConfig& config, Value ids, Value pooled_rows,
                               DType dtype = DType::f32);

}  // namespace kinora
