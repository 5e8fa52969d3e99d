#include "nn/layers.h"

#include <cmath>

namespace kinora {

Value linear_layer(const Params& p, Value x, int64_t out, bool bias, const std::string& act) {
  ScopeGuard scope = p.scope();
  Value weight = p.get("weight", {out, x.shape()[-1]});
  return linear(x, weight, bias ? p.get("bias", {out}) : Value(), act);
}

Value linear_part(const Params& p, Value x, int64_t out, int64_t begin, int64_t end, bool bias,
                  const std::string& act) {
  ScopeGuard scope = p.scope();
  Value weight = p.get_rows("weight", {out, x.shape()[-1]}, begin, end);
  return linear(x, weight, bias ? p.get_rows("bias", {out}, begin, end) : Value(), act);
}

Value linear_add_layer(const Params& p, Value x, bool bias, Value residual, Value gate) {
  ScopeGuard scope = p.scope();
  int64_t out = residual.shape()[-1];
  Value weight = p.get("weight", {out, x.shape()[-1]});
  return linear_add(x, weight, bias ? p.get("bias", {out}) : Value(), residual, gate);
}

Value conv1x1_layer(const Params& p, Value x, int64_t out, bool bias, const std::string& act) {
  ScopeGuard scope = p.scope();
  int64_t in = x.shape()[-1];
  Value weight = p.get_as("weight", {out, in, 1, 1}, {out, in});
  return linear(x, weight, bias ? p.get("bias", {out}) : Value(), act);
}

Value conv_layer(const Params& p, Value x, int64_t out, int64_t kernel, bool bias, Conv2dOptions options) {
  ScopeGuard scope = p.scope();
  Value weight = p.get("weight", {out, x.shape()[3] / options.groups, kernel, kernel});
  return conv2d(x, weight, bias ? p.get("bias", {out}) : Value(), options);
}

Tensor sinusoid(const std::vector<double>& positions, int64_t dim, double theta, bool cosine_first) {
  int64_t half = dim / 2;
  Tensor table({static_cast<int64_t>(positions.size()), dim}, DType::f32);
  float* out = table.data<float>();
  for (double position : positions) {
    for (int64_t k = 0; k < half; ++k) {
      double angle = position * std::pow(theta, -static_cast<double>(k) / static_cast<double>(half));
      out[cosine_first ? k + half : k] = static_cast<float>(std::sin(angle));
      out[cosine_first ? k : k + half] = static_cast<float>(std::cos(angle));
    }
    out += dim;
  }
  return table;
}

Value timestep_features(Value t) {
  constexpr int64_t kHalf = 128;
  std::vector<float> frequencies;
  for (int64_t i = 0; i < kHalf; ++i) {
    frequencies.push_back(std::exp(static_cast<float>(-std::log(10000.0)) * static_cast<float>(i) / kHalf));
  }
  Value angle = reshape(t, {t.shape()[0], 1}) * t.graph().constant(Tensor::from({1, kHalf}, frequencies));
  return concat({cos(angle), sin(angle)}, 1);
}

}  // namespace kinora
