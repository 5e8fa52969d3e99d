// Softmax attention by cuDNN 9, through its graph interface: a plan is built once per problem and run many times.
#pragma once

#include <memory>

#include "cuda/heads.h"

namespace kinora::cuda {

// One batch item without mask or bias, but perhaps with keys that do not count behind those that do: q and out
// [queries, heads, dim], k and v [keys, kv_heads, dim], float16 or bfloat16, at addresses and strides that are
// multiples of 16 bytes. Softmax and sums are float32.
struct AttentionProblem {
  DType dtype = DType::bf16;
  int64_t queries = 0, keys = 0, heads = 0, kv_heads = 0, dim = 0;
  HeadStrides q, k, v, out;  // the stride of the batch is left out
  bool cut = false;          // how many of the keys count is read from the device

  bool operator<(const AttentionProblem& other) const;
};

class FusedAttentionPlan {
 public:
  virtual ~FusedAttentionPlan() = default;
  virtual size_t workspace_bytes() const = 0;
  // Enqueues out = softmax(scale · q kᵀ) v. `workspace` is 256-byte aligned; `keys`, on the device, says how many there
  // are when the problem is cut, from 1 to all.
  virtual void run(cudaStream_t stream, const void* q, const void* k, const void* v, void* out, float scale,
                   void* workspace, const int32_t* keys) const = 0;
};

// As convolution_plan in cudnn.h: the first deterministic engine that cuDNN's heuristics name and that runs; null when
// there is none or cuDNN is absent. Plans are kept for the whole program, per device.
std::shared_ptr<const FusedAttentionPlan> fused_attention_plan(const AttentionProblem& problem);

// The step, but our own kernel for a run whose q, k, v or result begins where 16 bytes at a time cannot be read, as a
// slice may.
Step or_own_attention(const StepSpec& spec, Step step);

}  // namespace kinora::cuda
