#include "cuda/backend.h"

#include <array>

#include "cpu/backend.h"
#include "cuda/kernels.h"
#include "cuda/quantize.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/fuse.h"
#include "ops/fuse_conv.h"
#include "ops/fuse_film.h"
#include "ops/fuse_products.h"
#include "ops/fuse_quantized.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/reduce.h"
#include "ops/shaping.h"

namespace kinora::cuda {

static QuantFormat runnable(QuantFormat format) {
  return format == QuantFormat::fp8 && !has_fp8_products() ? QuantFormat::fp8_weights : format;
}

const Backend& backend() {
  constexpr bool kStrided = true, kStridedOut = true;
  static const std::array kernels{
      Kernel{&kAdd, make_binary, nullptr, kStrided},
      Kernel{&kSub, make_binary, nullptr, kStrided},
      Kernel{&kMul, make_binary, nullptr, kStrided},
      Kernel{&kDiv, make_binary, nullptr, kStrided},
      Kernel{&kAffine, make_affine, nullptr, kStrided},
      Kernel{&kExp, make_unary, nullptr, kStrided},
      Kernel{&kLog, make_unary, nullptr, kStrided},
      Kernel{&kSqrt, make_unary, nullptr, kStrided},
      Kernel{&kRsqrt, make_unary, nullptr, kStrided},
      Kernel{&kSin, make_unary, nullptr, kStrided},
      Kernel{&kCos, make_unary, nullptr, kStrided},
      Kernel{&kTanh, make_unary, nullptr, kStrided},
      Kernel{&kSigmoid, make_unary, nullptr, kStrided},
      Kernel{&kRelu, make_unary, nullptr, kStrided},
      Kernel{&kStep, make_unary, nullptr, kStrided},
      Kernel{&kClamp, make_clamp, nullptr, kStrided},
      Kernel{&kSilu, make_unary, nullptr, kStrided},
      Kernel{&kGeluTanh, make_unary, nullptr, kStrided},
      Kernel{&kErf, make_unary, nullptr, kStrided},
      Kernel{&kGelu, make_unary, nullptr, kStrided},
      Kernel{&kQuickGelu, make_unary, nullptr, kStrided},
      Kernel{&kMulAdd, make_mul_add, nullptr, kStrided},
      Kernel{&kActMul, make_act_mul, nullptr, kStrided},
      Kernel{&kCast, make_cast, supports_cast},
      Kernel{&kPermute, make_permute, nullptr, kStrided},
      Kernel{&kSlice, make_slice, nullptr, kStrided},
      Kernel{&kConcat, make_concat, nullptr, kStrided},
      Kernel{&kBroadcast, make_broadcast, nullptr, kStrided},
      Kernel{&kPad, make_pad, nullptr, kStrided},
      Kernel{&kPadEdge, make_pad_edge, nullptr, kStrided},
      Kernel{&kUpsample2, make_upsample2, nullptr, kStrided},
      Kernel{&kInterleavePhases, make_interleave_phases},
      Kernel{&kInterleavePhases3d, make_interleave_phases3d},
      Kernel{&kSum, make_sum, nullptr, kStrided},
      Kernel{&kMax, make_max, nullptr, kStrided},
      Kernel{&kSoftmax, make_softmax},
      Kernel{&kLayerNorm, make_layer_norm, supports_norm, kStrided},
      Kernel{&kRmsNorm, make_rms_norm, supports_norm, kStrided},
      Kernel{&kRmsNormAdd, make_rms_norm_add, supports_norm, kStrided},
      Kernel{&kGroupNorm, make_group_norm, supports_group_norm},
      Kernel{&kGroupNormPad, make_group_norm, supports_group_norm},
      Kernel{&kMatmul, make_matmul},
      Kernel{&kLinear, make_row_linear, supports_row_linear},
      Kernel{.op = &kLinear, .make = make_linear, .supports = supports_linear, .strided_out = true},
      Kernel{&kLinearAdd, make_linear_add, supports_linear_add},
      Kernel{.op = &kQuantizedLinear,
             .make = make_quantized_row_linear,
             .supports = supports_quantized_row_linear,
             .strided_out = true},
      Kernel{.op = &kQuantizedLinear,
             .make = make_quantized_linear,
             .supports = supports_quantized_linear,
             .strided_out = true},
      Kernel{.op = &kQuantizedLinearRows,
             .make = make_quantized_linear_rows,
             .supports = supports_quantized_linear_rows,
             .strided_out = true},
      Kernel{&kQuantizeRows, make_quantize_rows},
      Kernel{&kLayerNormRows, make_layer_norm_rows, supports_norm, kStrided},
      Kernel{&kRmsNormRows, make_rms_norm_rows, supports_norm, kStrided},
      Kernel{&kMulAddRows, make_mul_add_rows, supports_mul_add_rows, kStrided},
      Kernel{&kMulAddNorm, make_mul_add_norm, supports_mul_add_rows, kStrided},
      Kernel{&kRmsNormAddNorm, make_norm_add_norm, supports_norm_add_norm},
      Kernel{&kActMulRows, make_act_mul_rows, supports_act_mul_rows, kStrided},
      Kernel{&kDequantize, make_dequantize},
      Kernel{&kDequantizeRows, make_dequantize_rows},
      Kernel{&kGather, make_gather},
      Kernel{&kScatterRows, make_scatter_rows},
      Kernel{&kGlu, make_glu},
      Kernel{&kConv2d, make_depthwise_conv2d, supports_depthwise_conv2d, kStrided},
      Kernel{.op = &kConv2d, .make = make_grouped_conv2d, .supports = supports_grouped_conv2d, .strided_out = true},
      Kernel{&kConv2d, make_narrow_conv2d, supports_narrow_conv2d},
      Kernel{&kConv2d, make_conv2d, supports_conv2d},
      Kernel{&kConv3d, make_conv3d, supports_conv3d},
      Kernel{&kConv3d, make_film_conv3d, supports_film_conv3d},
      Kernel{&kDepthwiseGlu, make_depthwise_glu, supports_depthwise_glu},
      Kernel{&kAttention, make_cudnn_attention, supports_cudnn_attention, kStrided, "cudnn", kStridedOut,
             prefers_cudnn_attention},
      Kernel{&kAttention, make_few_keys_attention, supports_few_keys_attention, kStrided, "flash", kStridedOut},
      Kernel{&kAttention, make_attention, supports_attention, kStrided, "flash", kStridedOut},
      Kernel{&kAttention, nullptr, nullptr, kStrided, "math", kStridedOut},
      // Behind one that takes everything: only who asks for it gets it.
      Kernel{&kAttention, make_fp8_attention, supports_fp8_attention, kStrided, "fp8", kStridedOut},
      Kernel{&kLinearAttention, make_linear_attention, supports_linear_attention, kStrided, "linear"},
      Kernel{&kRope, make_rope, nullptr, kStrided},
      Kernel{&kRmsNormRope, make_norm_rope, supports_norm_rope, kStrided},
  };
  static constexpr Graph (*kPasses[])(const Graph&) = {
      split_gates,
      fuse_depthwise_glu,
      fold_upsampling,
      fold_film_upsampling,
      fuse_norm_padding,
      join_phases_and_shortcut,
      add_without_repeating,
      channels_last_weights,
      use_quantized_products,
      share_quantized_rows,
      merge_quantized_linears,
      match_weight_types,
      merge_linears,
      drop_rejoined_slices,
      join_before_slicing,
      fuse_pointwise,
      fuse_quantized_rows,
      fuse_sums_and_rows,
      fuse_norm_rope,
      merge_ropes,
      tile_weight_scales,
  };
  static const Backend instance{"cuda", kernels, kPasses, &cpu::backend(), runnable, weight_quantizer};
  return instance;
}

}  // namespace kinora::cuda
