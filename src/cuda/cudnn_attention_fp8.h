// Softmax attention of E4M3 codes by cuDNN 9 on Hopper and later, for some of the keys at a time.
#pragma once

#include <memory>

#include "cuda/cuda.h"

namespace kinora::cuda {

constexpr int64_t kFp8HeadDim = 128;

// Codes of q and out [queries, heads, 128], of k and v [keys, heads, 128], all contiguous; stats [heads, queries].
struct Fp8AttentionProblem {
  int64_t queries = 0, keys = 0, heads = 0;

  bool operator<(const Fp8AttentionProblem& other) const;
};

// What the numbers in the codes' place are multiplied by, on the device; 16 bytes apart as cuDNN reads them.
struct alignas(16) Fp8Number {
  float value;
};
struct Fp8Numbers {
  Fp8Number q, k, v;         // a code's value
  Fp8Number weight;          // a softmax weight's code is its value times this
  Fp8Number weight_inverse;  // and a weight code's value
  Fp8Number out;             // a result's code is its value times this
  Fp8Number peak;            // written: the largest magnitude of a result
};

struct Fp8AttentionArgs {
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  void* out = nullptr;
  float* stats = nullptr;  // of each query: the logarithm of the sum of exp(score)
  Fp8Numbers* numbers = nullptr;
  float scale = 1;
  void* workspace = nullptr;
};

class Fp8AttentionPlan {
 public:
  virtual ~Fp8AttentionPlan() = default;
  virtual size_t workspace_bytes() const = 0;
  // Enqueues out = softmax(scale · q kᵀ) v; pointers are 16-byte aligned.
  virtual void run(cudaStream_t stream, const Fp8AttentionArgs& args) const = 0;
};

// The first deterministic engine that cuDNN's heuristics name and that runs; null when there is none or cuDNN is
// absent. Plans are kept for the whole program, per device.
std::shared_ptr<const Fp8AttentionPlan> fp8_attention_plan(const Fp8AttentionProblem& problem);

}  // namespace kinora::cuda
