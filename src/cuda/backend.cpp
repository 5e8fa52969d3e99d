#include "cuda/backend.h"

#include <array>

#include "cpu/backend.h"
#include "cuda/kernels.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/fuse.h"
#include "ops/fuse_conv.h"
#include "ops/fuse_film.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shaping.h"

namespace kinora::cuda {

const Backend& backend() {
  constexpr bool kStrided = true;
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
      Kernel{&kLinear, make_linear, supports_linear},
      Kernel{&kLinearAdd, make_linear_add, supports_linear_add},
      Kernel{&kGather, make_gather},
      Kernel{&kScatterRows, make_scatter_rows},
      Kernel{&kGlu, make_glu},
      Kernel{&kConv2d, make_depthwise_conv2d, supports_depthwise_conv2d},
      Kernel{&kConv2d, make_grouped_conv2d, supports_grouped_conv2d},
      Kernel{&kConv2d, make_conv2d, supports_conv2d},
      Kernel{&kConv3d, make_conv3d, supports_conv3d},
      Kernel{&kConv3d, make_film_conv3d, supports_film_conv3d},
      Kernel{&kDepthwiseGlu, make_depthwise_glu, supports_depthwise_glu},
      Kernel{&kAttention, make_attention, supports_attention, kStrided},
      Kernel{&kLinearAttention, make_linear_attention, supports_linear_attention, kStrided},
      Kernel{&kRope, make_rope, nullptr, kStrided},
  };
  static constexpr Graph (*kPasses[])(const Graph&) = {
      split_gates,       fuse_depthwise_glu,    fold_upsampling,       fold_film_upsampling,
      fuse_norm_padding, add_without_repeating, channels_last_weights, match_weight_types,
      merge_linears,     drop_rejoined_slices,  fuse_pointwise,
  };
  static const Backend instance{"cuda", kernels, kPasses, &cpu::backend()};
  return instance;
}

}  // namespace kinora::cuda
