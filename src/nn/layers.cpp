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
  Shape stored = x.shape().rank() == 5 ? Shape{out, in, 1, 1, 1} : Shape{out, in, 1, 1};
  Value weight = p.get_as("weight", stored, {out, in});
  return linear(x, weight, bias ? p.get("bias", {out}) : Value(), act);
}

Value conv_layer(const Params& p, Value x, int64_t out, int64_t kernel, bool bias, Conv2dOptions options) {
  ScopeGuard scope = p.scope();
  Value weight = p.get("weight", {out, x.shape()[3] / options.groups, kernel, kernel});
  return conv2d(x, weight, bias ? p.get("bias", {out}) : Value(), options);
}

Value conv3d_layer(const Params& p, Value x, int64_t out, int64_t kernel, bool bias, const Conv3dOptions& options) {
  ScopeGuard scope = p.scope();
  Value weight = p.get("weight", {out, x.shape()[4] / options.groups, kernel, kernel, kernel});
  return conv3d(x, weight, bias ? p.get("bias", {out}) : Value(), options);
}

Value causal_conv3d_layer(const Params& p, Value x, int64_t out, int64_t kernel, std::array<int64_t, 3> stride) {
  if (kernel == 1) return conv1x1_layer(p / "conv", x, out, true);
  int64_t side = kernel / 2;
  Value padded = pad_edge(x, {0, kernel - 1, side, side, 0}, {0, 0, side, side, 0});
  return conv3d_layer(p / "conv", padded, out, kernel, true, {.stride = stride});
}

Value group_norm_layer(const Params& p, Value x, int64_t groups, double eps, const std::string& act) {
  ScopeGuard scope = p.scope();
  int64_t channels = x.shape()[-1];
  return group_norm(x, p.get("weight", {channels}), p.get("bias", {channels}), groups, eps, act);
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
