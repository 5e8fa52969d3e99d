#include "cpu/backend.h"

#include <array>

#include "cpu/kernels.h"
#include "cpu/onednn.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/reduce.h"
#include "ops/shaping.h"

namespace kinora::cpu {

const Backend& backend() {
  static const std::array kernels{
      Kernel{&kAdd, make_binary},
      Kernel{&kSub, make_binary},
      Kernel{&kMul, make_binary},
      Kernel{&kDiv, make_binary},
      Kernel{&kAffine, make_affine},
      Kernel{&kExp, make_unary},
      Kernel{&kLog, make_unary},
      Kernel{&kSqrt, make_unary},
      Kernel{&kRsqrt, make_unary},
      Kernel{&kSin, make_unary},
      Kernel{&kCos, make_unary},
      Kernel{&kTanh, make_unary},
      Kernel{&kErf, make_unary},
      Kernel{&kSigmoid, make_unary},
      Kernel{&kRelu, make_unary},
      Kernel{&kStep, make_unary},
      Kernel{&kClamp, make_clamp},
      Kernel{&kSilu, make_unary},
      Kernel{&kGeluTanh, make_unary},
      Kernel{&kGelu, make_unary},
      Kernel{&kQuickGelu, make_unary},
      Kernel{&kCast, make_cast},
      Kernel{&kPermute, make_permute},
      Kernel{&kSlice, make_slice},
      Kernel{&kConcat, make_concat},
      Kernel{&kBroadcast, make_broadcast},
      Kernel{&kPad, make_pad},
      Kernel{&kPadEdge, make_pad_edge, supports_pad_edge},
      Kernel{&kUpsample2, make_upsample2},
      Kernel{&kSum, make_sum},
      Kernel{&kMax, make_max},
      Kernel{&kSoftmax, make_softmax},
      Kernel{&kLayerNorm, make_layer_norm},
      Kernel{&kRmsNorm, make_rms_norm,
             [](const StepSpec& spec) {
               return spec.inputs[0].dtype == spec.output().dtype && !spec.node.attrs.has("act");
             }},
      Kernel{&kGroupNorm, make_group_norm, supports_group_norm},
      Kernel{&kMatmul, make_matmul},
      Kernel{&kLinear, make_linear},
      Kernel{&kLinearAdd, make_linear,
             [](const StepSpec& spec) { return spec.inputs[1].dtype == spec.output().dtype; }},
      Kernel{&kGather, make_gather},
      Kernel{&kScatterRows, make_scatter_rows},
      Kernel{&kConv2d, make_conv2d, supports_conv2d},
      Kernel{&kDepthwiseGlu, make_depthwise_glu, supports_depthwise_glu},
      Kernel{&kConv3d, make_conv3d, supports_conv3d},
      Kernel{.op = &kAttention, .make = make_block_attention, .supports = supports_block_attention, .variant = "flash"},
      Kernel{.op = &kAttention, .make = make_attention, .variant = "flash"},
      Kernel{.op = &kAttention, .make = nullptr, .variant = "math"},
      Kernel{.op = &kLinearAttention,
             .make = make_linear_attention,
             .supports = supports_linear_attention,
             .variant = "linear"},
      Kernel{&kRope, make_rope},
      Kernel{&kGlu, make_glu},
      Kernel{&kQuantizedLinear, make_linear, supports_quantized_linear},
      Kernel{&kQuantizedLinearRows, make_linear, supports_quantized_linear_rows},
      Kernel{&kDequantize, make_dequantize},
      Kernel{&kQuantizeRows, make_quantize_rows},
      Kernel{&kDequantizeRows, make_dequantize_rows},
  };
  static constexpr Graph (*kPasses[])(const Graph&) = {use_quantized_products, share_quantized_rows};
  static const Backend instance{"cpu", kernels, kPasses};
  return instance;
}

std::string description() {
  return std::string("own kernels: ") + simd().name +
         ", bfloat16 products: " + (has_native_bf16() ? "native" : "as float32") +
         ", int8 products: " + (has_native_int8() ? "native" : "as floats");
}

}  // namespace kinora::cpu
