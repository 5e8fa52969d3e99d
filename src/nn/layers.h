// The bricks of the models: each reads its parameters from a path and appends its nodes.
#pragma once

#include "nn/params.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shaping.h"

namespace kinora {

// "<path>.weight" [out, in] and, with `bias`, "<path>.bias" [out]; x [.., in] -> [.., out].
Value linear_layer(const Params& p, Value x, int64_t out, bool bias, const std::string& act = "none");
// Outputs [begin, end) of a layer of `out` outputs, bias included: one of several layers stored as one.
Value linear_part(const Params& p, Value x, int64_t out, int64_t begin, int64_t end, bool bias,
                  const std::string& act = "none");
// residual + gate·linear_layer(x); gate undefined: one.
Value linear_add_layer(const Params& p, Value x, bool bias, Value residual, Value gate = {});
// A 1x1 convolution stored as [out, in, 1, 1] ([out, in, 1, 1, 1] when x is a film), as a product over channels.
Value conv1x1_layer(const Params& p, Value x, int64_t out, bool bias, const std::string& act = "none");
// x [batch, h, w, in] -> [batch, h', w', out].
Value conv_layer(const Params& p, Value x, int64_t out, int64_t kernel, bool bias, Conv2dOptions options);

// x [batch, t, h, w, in] -> [batch, t', h', w', out]; the kernel is as long in all three axes.
Value conv3d_layer(const Params& p, Value x, int64_t out, int64_t kernel, bool bias, const Conv3dOptions& options);
// A convolution that looks at no later frame, with edges repeated: kernel - 1 times before the first frame, half the
// kernel around each frame. Its tensors are "<path>.conv.weight" and "<path>.conv.bias".
Value causal_conv3d_layer(const Params& p, Value x, int64_t out, int64_t kernel,
                          std::array<int64_t, 3> stride = {1, 1, 1});
// "<path>.weight" and "<path>.bias" [channels], then the activation.
Value group_norm_layer(const Params& p, Value x, int64_t groups, double eps, const std::string& act = "none");

// sin/cos features of positions, computed in float64: [sin(p·ω), cos(p·ω)] with ω_k = theta^(-k / (dim / 2)),
// or cosine first. Returns [positions, dim] float32.
Tensor sinusoid(const std::vector<double>& positions, int64_t dim, double theta, bool cosine_first);

// Sine-cosine features of t [batch], cosine first, in float32 as diffusion transformers were trained with: [batch,
// 256].
Value timestep_features(Value t);

}  // namespace kinora
