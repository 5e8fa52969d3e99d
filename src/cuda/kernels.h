// The kernel makers of the CUDA backend, by family; backend.cpp lists them in one table. Every `in` and `out` is device
// memory; a step enqueues on its stream and returns. Sums have an order fixed by the shape, never by timing.
#pragma once

#include "cuda/cuda.h"

namespace kinora::cuda {

// elementwise.cu
Step make_unary(const StepSpec& spec);  // exp … gelu_tanh, by the op's name
Step make_binary(const StepSpec& spec);
Step make_affine(const StepSpec& spec);
Step make_clamp(const StepSpec& spec);
Step make_cast(const StepSpec& spec);
bool supports_cast(const StepSpec& spec);
Step make_glu(const StepSpec& spec);
Step make_mul_add(const StepSpec& spec);
Step make_act_mul(const StepSpec& spec);

// shaping.cu
Step make_permute(const StepSpec& spec);
Step make_slice(const StepSpec& spec);
Step make_concat(const StepSpec& spec);
Step make_broadcast(const StepSpec& spec);
Step make_pad(const StepSpec& spec);
Step make_pad_edge(const StepSpec& spec);
Step make_upsample2(const StepSpec& spec);
Step make_interleave_phases(const StepSpec& spec);
Step make_interleave_phases3d(const StepSpec& spec);
Step make_gather(const StepSpec& spec);
Step make_scatter_rows(const StepSpec& spec);

// reduce.cu, norm.cu, group_norm.cu
Step make_sum(const StepSpec& spec);
Step make_max(const StepSpec& spec);
Step make_softmax(const StepSpec& spec);
Step make_layer_norm(const StepSpec& spec);
Step make_rms_norm(const StepSpec& spec);
Step make_rms_norm_add(const StepSpec& spec);
bool supports_norm(const StepSpec& spec);
Step make_group_norm(const StepSpec& spec);
bool supports_group_norm(const StepSpec& spec);
Step make_layer_norm_rows(const StepSpec& spec);
Step make_rms_norm_rows(const StepSpec& spec);
Step make_mul_add_rows(const StepSpec& spec);
Step make_mul_add_norm(const StepSpec& spec);
bool supports_mul_add_rows(const StepSpec& spec);
Step make_norm_add_norm(const StepSpec& spec);  // norm_add_norm.cu
bool supports_norm_add_norm(const StepSpec& spec);

// cublaslt.cpp
Step make_matmul(const StepSpec& spec);
Step make_linear(const StepSpec& spec);
bool supports_linear(const StepSpec& spec);
Step make_linear_add(const StepSpec& spec);
bool supports_linear_add(const StepSpec& spec);
Step make_row_linear(const StepSpec& spec);  // row_linear.cu
bool supports_row_linear(const StepSpec& spec);

// quantize.cu, quantized_linear.cpp
Step make_quantize_rows(const StepSpec& spec);
Step make_act_mul_rows(const StepSpec& spec);
bool supports_act_mul_rows(const StepSpec& spec);
Step make_dequantize(const StepSpec& spec);
Step make_dequantize_rows(const StepSpec& spec);
Step make_quantized_linear(const StepSpec& spec);
bool supports_quantized_linear(const StepSpec& spec);
Step make_quantized_row_linear(const StepSpec& spec);  // row_linear.cu
bool supports_quantized_row_linear(const StepSpec& spec);
Step make_quantized_linear_rows(const StepSpec& spec);
bool supports_quantized_linear_rows(const StepSpec& spec);

// cudnn_attention.cpp, attention.cu, attention_wgmma.cu, attention_fp8.cu: rows for attention; linear_attention.cu,
// rope.cu, norm_rope.cu
Step make_cudnn_attention(const StepSpec& spec);
bool supports_cudnn_attention(const StepSpec& spec);
bool prefers_cudnn_attention(const StepSpec& spec);
Step make_few_keys_attention(const StepSpec& spec);
bool supports_few_keys_attention(const StepSpec& spec);
Step make_attention(const StepSpec& spec);
bool supports_attention(const StepSpec& spec);
Step make_fp8_attention(const StepSpec& spec);
bool supports_fp8_attention(const StepSpec& spec);
Step make_linear_attention(const StepSpec& spec);
bool supports_linear_attention(const StepSpec& spec);
Step make_rope(const StepSpec& spec);
Step make_norm_rope(const StepSpec& spec);
bool supports_norm_rope(const StepSpec& spec);

// conv.cpp, conv3d.cpp (cuDNN), depthwise.cu, grouped.cu, narrow_conv.cu: four rows for conv2d; conv3d_mma.cu: where
// cuDNN has no plan
Step make_conv2d(const StepSpec& spec);
bool supports_conv2d(const StepSpec& spec);
Step make_conv3d(const StepSpec& spec);
bool supports_conv3d(const StepSpec& spec);
Step make_film_conv3d(const StepSpec& spec);
bool supports_film_conv3d(const StepSpec& spec);
Step make_grouped_conv2d(const StepSpec& spec);
bool supports_grouped_conv2d(const StepSpec& spec);
Step make_narrow_conv2d(const StepSpec& spec);
bool supports_narrow_conv2d(const StepSpec& spec);
Step make_depthwise_conv2d(const StepSpec& spec);
bool supports_depthwise_conv2d(const StepSpec& spec);
Step make_depthwise_glu(const StepSpec& spec);
bool supports_depthwise_glu(const StepSpec& spec);

}  // namespace kinora::cuda
