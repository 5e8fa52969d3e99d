// What follows a product or convolution where its library does not take it on.
#pragma once

#include "cuda/cuda.h"

namespace kinora::cuda {

enum class Act : uint8_t { none, relu, silu, gelu_tanh };

inline bool is_act(const std::string& name) {
  return name == "none" || name == "relu" || name == "silu" || name == "gelu_tanh";
}
inline Act act_of(const std::string& name) {
  if (name == "relu") return Act::relu;
  if (name == "silu") return Act::silu;
  return name == "gelu_tanh" ? Act::gelu_tanh : Act::none;
}

// y [rows, channels] becomes act(y + bias) + residual, in place; bias [channels] and residual [rows, channels] are of
// y's type or null. All contiguous and 16-byte aligned where a row's bytes are a multiple of 16; y's rows may lie
// apart.
struct Epilogue {
  DType dtype = DType::f32;
  int64_t rows = 0, channels = 0;
  Act act = Act::none;
  int64_t row = 0;  // elements from one row of y to the next; 0: channels

  void enqueue(cudaStream_t stream, void* y, const void* bias, const void* residual) const;
};

}  // namespace kinora::cuda
