#include "ops/table.h"

#include <array>

#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/fuse_quantized.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/reduce.h"
#include "ops/shaping.h"

namespace kinora {

static constexpr std::array kOps{
    &kAdd,
    &kSub,
    &kMul,
    &kDiv,
    &kAffine,
    &kExp,
    &kLog,
    &kSqrt,
    &kRsqrt,
    &kSin,
    &kCos,
    &kTanh,
    &kErf,
    &kSigmoid,
    &kRelu,
    &kStep,
    &kClamp,
    &kSilu,
    &kGeluTanh,
    &kGelu,
    &kQuickGelu,
    &kCast,
    &kReshape,
    &kPart,
    &kPermute,
    &kSlice,
    &kConcat,
    &kBroadcast,
    &kPad,
    &kSum,
    &kMax,
    &kMatmul,
    &kLinear,
    &kGather,
    &kConv2d,
    &kUpsample2,
    &kLayerNorm,
    &kRmsNorm,
    &kSoftmax,
    &kAttention,
    &kLinearAttention,
    &kRope,
    &kGlu,
    &kScatterRows,
    &kMulAdd,
    &kActMul,
    &kLinearAdd,
    &kRmsNormAdd,
    &kDepthwiseGlu,
    &kConv3d,
    &kGroupNorm,
    &kPadEdge,
    &kInterleavePhases,
    &kGroupNormPad,
    &kInterleavePhases3d,
    &kRmsNormRope,
    &kDequantize,
    &kQuantizedLinear,
    &kQuantizeRows,
    &kDequantizeRows,
    &kQuantizedLinearRows,
    &kLayerNormRows,
    &kRmsNormRows,
    &kActMulRows,
    &kMulAddRows,
    &kMulAddNorm,
    &kRmsNormAddNorm,
};

std::span<const OpDef* const> op_table() { return kOps; }

const OpDef& find_op(std::string_view name) {
  for (const OpDef* op : kOps) {
    if (op->name == name) return *op;
  }
  fail(ErrorKind::internal, "no op is called '" + std::string(name) + "'");
}

void expect_inputs(std::span<const TensorSpec> inputs, size_t at_least, size_t at_most) {
  if (inputs.size() < at_least || inputs.size() > std::max(at_least, at_most)) {
    fail(ErrorKind::internal,
         std::to_string(inputs.size()) + " inputs given, " + std::to_string(at_least) + " expected");
  }
}

void expect_float(const TensorSpec& spec) {
  if (!is_float(spec.dtype)) {
    fail(ErrorKind::internal, "a floating-point input is expected, not " + std::string(dtype_name(spec.dtype)));
  }
}

void expect_shape(std::string_view what, const Shape& got, const Shape& expected) {
  if (!(got == expected)) {
    fail(ErrorKind::internal, std::string(what) + " must be " + expected.str() + ", not " + got.str());
  }
}

}  // namespace kinora
