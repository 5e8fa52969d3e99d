// What ends a convolution on the CPU: bias and activation, on float32 sums.
#pragma once

#include "cpu/kernels.h"

namespace kinora::cpu {

struct Finish {
  bool bias = false, act = false;
  DType bias_type = DType::f32, out_type = DType::f32;
  Unary unary = Unary::silu;

  explicit Finish(const StepSpec& spec) : bias(spec.inputs.size() == 3), out_type(spec.output().dtype) {
    if (bias) bias_type = spec.inputs[2].dtype;
    const std::string& name = spec.node.attrs.text("act");
    act = name != "none";
    if (name == "relu") unary = Unary::relu;
    if (name == "gelu_tanh") unary = Unary::gelu_tanh;
  }
  // Adds the bias of channels [channel, channel + n), applies the activation.
  void apply(const StepArgs& args, float* pixel, int64_t channel, size_t n, float* scratch) const {
    if (bias) {
      simd().load(bias_type, advance(args.in[2], bias_type, channel), scratch, n);
      simd().binary(Binary::add, pixel, 1, scratch, 1, pixel, n);
    }
    if (act) simd().unary(unary, pixel, pixel, n);
  }
};

}  // namespace kinora::cpu
