// Convolutions by cuDNN 9, through its graph interface: a plan is built once per problem and run many times.
#pragma once

#include <memory>

#include "cuda/cuda.h"

namespace kinora::cuda {

// One picture (two spatial axes) or film (three), channels last: x [size.., in], weight [out, kernel.., in/groups],
// bias [out], residual and y [out_size.., out], all of one type and at addresses that are multiples of 16. y =
// act(conv(x) + bias) + residual; sums are float32.
struct Convolution {
  DType dtype = DType::f32;
  Ints size, kernel, stride, before, after, dilation;  // one entry a spatial axis; zeros before and after
  int64_t in = 0, out = 0, groups = 1;
  bool bias = false, residual = false;
  std::string act = "none";  // none, relu, silu, gelu_tanh

  Ints out_size() const;
  bool operator<(const Convolution& other) const;
};

class ConvolutionPlan {
 public:
  virtual ~ConvolutionPlan() = default;
  virtual int64_t engine() const = 0;  // its number among all of cuDNN's
  virtual size_t workspace_bytes() const = 0;
  // What the plan computes besides the convolution; the rest is the caller's to add, in the order of the formula.
  virtual bool adds_bias() const = 0;
  virtual bool activates() const = 0;
  virtual bool adds_residual() const = 0;
  // Enqueues. `bias` and `residual` are read only where the plan adds them. `workspace` is 256-byte aligned.
  virtual void run(cudaStream_t stream, const void* x, const void* weight, const void* bias, const void* residual,
                   void* y, void* workspace) const = 0;
};

// The first deterministic engine that cuDNN's heuristics name, that keeps float32's precision where the type is
// float32, needs at most 256 MiB of workspace and can be built; null when there is none. Plans are kept for the
// whole program, per device. Throws Error(resource) when cuDNN is absent. `suggestion`: which of those engines to take,
// cuDNN's favourite first; for measuring.
std::shared_ptr<const ConvolutionPlan> convolution_plan(const Convolution& problem, int suggestion = 0);

}  // namespace kinora::cuda
