// Elementwise ops. Binary ops broadcast like NumPy; both inputs must have the same dtype, which is the result's.
#pragma once

#include "graph/graph.h"

namespace kinora {

Value add(Value a, Value b);
Value sub(Value a, Value b);
Value mul(Value a, Value b);
Value div(Value a, Value b);

inline Value operator+(Value a, Value b) { return add(a, b); }
inline Value operator-(Value a, Value b) { return sub(a, b); }
inline Value operator*(Value a, Value b) { return mul(a, b); }
inline Value operator/(Value a, Value b) { return div(a, b); }

Value affine(Value x, double scale, double shift);  // x * scale + shift
Value exp(Value x);
Value log(Value x);
Value sqrt(Value x);
Value rsqrt(Value x);
Value sin(Value x);
Value cos(Value x);
Value tanh(Value x);
Value erf(Value x);
Value sigmoid(Value x);
Value relu(Value x);
Value relu6(Value x);
Value step(Value x);  // 1 where x > 0, else 0; no gradient
Value clamp(Value x, double low, double high);
Value silu(Value x);        // x * sigmoid(x)
Value gelu_tanh(Value x);   // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
Value gelu(Value x);        // 0.5 x (1 + erf(x / sqrt(2)))
Value quick_gelu(Value x);  // x * sigmoid(1.702 x)   (CLIP)
Value cast(Value x, DType dtype);
Value mul_add(Value a, Value b, Value c);                 // a · b + c, rounded once
Value act_mul(Value a, Value b, const std::string& act);  // act(a) · b, rounded once; "silu" or "gelu_tanh"

// The activation of that name as configs write it ("none", "silu", "swish", "relu", "relu6", "gelu", "quick_gelu",
// "gelu_tanh", "gelu_new", "gelu_pytorch_tanh"); throws Error(model) on another.
Value activation(Value x, const std::string& name);

extern const OpDef kAdd, kSub, kMul, kDiv, kAffine, kExp, kLog, kSqrt, kRsqrt, kSin, kCos, kTanh, kErf, kSigmoid, kRelu,
    kStep, kClamp, kSilu, kGeluTanh, kGelu, kQuickGelu, kCast, kMulAdd, kActMul;

}  // namespace kinora
