// Convolution of films, channels last: dense through oneDNN, one filter per channel (depthwise) by our own loop. Other
// groups decompose into convolutions of pictures.
#include <algorithm>

#include "cpu/dense_conv.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace kinora::cpu {
namespace {

// One task makes a few rows.
Step make_depthwise(const StepSpec& spec) {
  ConvGeometry g(spec);
  DType type = spec.inputs[0].dtype, wt = spec.inputs[1].dtype;
  bool biased = spec.inputs.size() == 3;
  DType bt = biased ? spec.inputs[2].dtype : DType::f32;
  int64_t channels = g.in, kh = g.h.kernel, under = g.t.kernel * kh, taps = g.taps();
  int64_t rows = std::clamp<int64_t>(kConvPixels / g.w.out, 1, 4), blocks = (g.h.out + rows - 1) / rows;
  Step step;
  step.scratch_bytes = static_cast<size_t>((taps + 1) * channels) * 4;
  step.run = [=](const StepArgs& args) {
    auto *weight = reinterpret_cast<float*>(args.scratch), *bias = weight + taps * channels;
    std::vector<float> stored(static_cast<size_t>(taps));
    for (int64_t c = 0; c < channels; ++c) {  // [channels, 1, kt, kh, kw] -> [kt·kh·kw, channels]
      simd().load(wt, advance(args.in[1], wt, c * taps), stored.data(), stored.size());
      for (int64_t t = 0; t < taps; ++t) weight[t * channels + c] = stored[static_cast<size_t>(t)];
    }
    if (biased) simd().load(bt, args.in[2], bias, static_cast<size_t>(channels));
    args.pool.run(g.frames() * blocks, [&](int64_t task, int) {
      int64_t item = task / blocks, first = task % blocks * rows;
      int64_t film = item / g.t.out * g.t.in, front = item % g.t.out * g.t.stride - g.t.padding;
      std::vector<const void*> lines(static_cast<size_t>(under));  // of all frames under the kernel, one after another
      DepthwiseRow row{.type = type,
                       .rows = lines.data(),
                       .weight = weight,
                       .bias = biased ? bias : nullptr,
                       .channels = static_cast<size_t>(channels),
                       .kh = static_cast<size_t>(under),
                       .kw = static_cast<size_t>(g.w.kernel),
                       .stride = static_cast<size_t>(g.w.stride),
                       .padding = static_cast<size_t>(g.w.padding),
                       .width_in = static_cast<size_t>(g.w.in),
                       .width = static_cast<size_t>(g.w.out),
                       .glu = false};
      for (int64_t y = first; y < std::min(g.h.out, first + rows); ++y) {
        for (int64_t i = 0; i < under; ++i) {
          int64_t frame = front + i / kh, line = y * g.h.stride - g.h.padding + i % kh;
          bool inside = frame >= 0 && frame < g.t.in && line >= 0 && line < g.h.in;
          lines[static_cast<size_t>(i)] =
              inside ? advance(args.in[0], type, ((film + frame) * g.h.in + line) * g.w.in * channels) : nullptr;
        }
        simd().depthwise_row(row, advance(args.out, type, (item * g.h.out + y) * g.w.out * channels));
      }
    });
  };
  return step;
}

}  // namespace

bool supports_conv3d(const StepSpec& spec) {
  if (spec.node.attrs.text("weight_layout") != "oithw") return false;
  ConvGeometry g(spec);
  const std::string& act = spec.node.attrs.text("act");
  return (g.groups == 1 || (g.depthwise() && act == "none")) && spec.output().shape.numel() > 0 &&
         (act == "none" || act == "silu" || act == "relu" || act == "gelu_tanh");
}

Step make_conv3d(const StepSpec& spec) {
  return ConvGeometry(spec).groups == 1 ? make_dense_conv(spec) : make_depthwise(spec);
}

}  // namespace kinora::cpu
