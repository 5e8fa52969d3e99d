// The kernel makers of the CPU backend, by family; backend.cpp lists them in one table.
#pragma once

#include "cpu/simd.h"
#include "graph/executable.h"

namespace kinora::cpu {

Step make_unary(const StepSpec& spec);  // exp … gelu_tanh, by the op's name
Step make_binary(const StepSpec& spec);
Step make_affine(const StepSpec& spec);
Step make_clamp(const StepSpec& spec);
Step make_cast(const StepSpec& spec);
Step make_glu(const StepSpec& spec);

Step make_permute(const StepSpec& spec);
Step make_slice(const StepSpec& spec);
Step make_concat(const StepSpec& spec);
Step make_broadcast(const StepSpec& spec);
Step make_pad(const StepSpec& spec);
Step make_pad_edge(const StepSpec& spec);
bool supports_pad_edge(const StepSpec& spec);
Step make_upsample2(const StepSpec& spec);
Step make_gather(const StepSpec& spec);
Step make_scatter_rows(const StepSpec& spec);

Step make_sum(const StepSpec& spec);
Step make_max(const StepSpec& spec);
Step make_softmax(const StepSpec& spec);
Step make_layer_norm(const StepSpec& spec);
Step make_rms_norm(const StepSpec& spec);
Step make_group_norm(const StepSpec& spec);
bool supports_group_norm(const StepSpec& spec);

Step make_linear(const StepSpec& spec);  // linear_add, quantized_linear and quantized_linear_rows too
bool supports_quantized_linear(const StepSpec& spec);
bool supports_quantized_linear_rows(const StepSpec& spec);
Step make_matmul(const StepSpec& spec);
Step make_conv2d(const StepSpec& spec);
bool supports_conv2d(const StepSpec& spec);
Step make_depthwise_glu(const StepSpec& spec);
bool supports_depthwise_glu(const StepSpec& spec);
Step make_conv3d(const StepSpec& spec);
bool supports_conv3d(const StepSpec& spec);

Step make_dequantize(const StepSpec& spec);
Step make_quantize_rows(const StepSpec& spec);
Step make_dequantize_rows(const StepSpec& spec);

Step make_attention(const StepSpec& spec);
Step make_block_attention(const StepSpec& spec);
bool supports_block_attention(const StepSpec& spec);
Step make_linear_attention(const StepSpec& spec);
bool supports_linear_attention(const StepSpec& spec);
Step make_rope(const StepSpec& spec);

// For each row of x, the index of the row that it reads of an operand which broadcasts against x and whose last axis is
// full.
std::vector<int64_t> row_index(const Shape& operand, const Shape& x);

// Scratch memory divided among the threads: `bytes` each, 64-byte aligned.
class Workspace {
 public:
  size_t add(size_t bytes) {  // returns the offset within one thread's part
    size_t at = bytes_;
    bytes_ += (bytes + 63) / 64 * 64;
    return at;
  }
  size_t total(int threads) const { return bytes_ * static_cast<size_t>(threads); }
  template <class T = float>
  T* at(const StepArgs& args, int worker, size_t offset) const {
    return reinterpret_cast<T*>(args.scratch + bytes_ * static_cast<size_t>(worker) + offset);
  }

 private:
  size_t bytes_ = 0;
};

inline const std::byte* advance(const void* base, DType dtype, int64_t elements) {
  return static_cast<const std::byte*>(base) + elements * static_cast<int64_t>(dtype_size(dtype));
}
inline std::byte* advance(void* base, DType dtype, int64_t elements) {
  return static_cast<std::byte*>(base) + elements * static_cast<int64_t>(dtype_size(dtype));
}

}  // namespace kinora::cpu
