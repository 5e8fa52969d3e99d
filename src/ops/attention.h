// Attention in its forms. Heads are an axis: q [batch, queries, heads, dim], k and v [batch, keys, kv_heads, dim].
// Softmax and the linear-attention state are float32.
#pragma once

#include "graph/graph.h"

namespace kinora {

Value softmax(Value x);  // over the last axis

struct AttentionOptions {
  double scale = 1;
  double softcap = 0;   // > 0: scores become softcap·tanh(scores / softcap)   (Gemma-2)
  bool causal = false;  // query i sees keys <= i
  int64_t window = 0;   // > 0: with causal, query i sees only keys > i - window
  int64_t block = 1;    // > 1: with causal, query i sees all keys of its own block of so many too: keys
                        // < (i / block + 1)·block (the frames of a film); not together with window
};
// `bias` f32 is added to the scores (after scale and softcap), or undefined: [batch | 1, heads | 1, queries | 1, keys],
// an extent of 1 standing for all, or [batch, keys] for [batch, 1, 1, keys]. heads is a multiple of kv_heads.
// `lengths` [batch] i32, from 1 to keys, or undefined: item b has the keys before lengths[b] alone; the others weigh
// nothing. Returns [batch, queries, heads, dim].
Value attention(Value q, Value k, Value v, Value bias, const AttentionOptions& options, Value lengths = {});

// Which of an attention's inputs are its bias and lengths; 0: it has none.
struct AttentionExtras {
  size_t bias = 0, lengths = 0;
};
AttentionExtras attention_extras(std::span<const TensorSpec> inputs);

// ReLU linear attention (Sana, EfficientViT): with q, k through ReLU and v extended by a one,
// S = Σ_n v'_n k_nᵀ and out = (S q)[:d] / ((S q)[d] + eps). All three [batch, tokens, heads, dim].
Value linear_attention(Value q, Value k, Value v, double eps = 1e-15);

// Rotary embedding: x·cos + turn(x)·sin; x [batch, tokens, heads, dim], cos and sin [tokens, dim] f32.
// turn(x) is [-x₂, x₁] of the two halves, or, interleaved, (-x₂, x₁) of each pair of neighbours.
Value rope(Value x, Value cos, Value sin, bool interleaved = false);

// rope(rms_norm(x, weight), cos, sin), rounded once: how a head's queries and keys are made ready. weight [dim] of any
// float type; eps and offset as rms_norm's.
Value rms_norm_rope(Value x, Value weight, Value cos, Value sin, double eps, double offset = 0,
                    bool interleaved = false);

// [.., 2C] -> first half · silu(second half) [.., C].
Value glu(Value x);

extern const OpDef kSoftmax, kAttention, kLinearAttention, kRope, kRmsNormRope, kGlu;

}  // namespace kinora
