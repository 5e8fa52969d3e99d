// Convolution, channels last: dense through oneDNN, one filter per channel (depthwise) by our own loop, grouped 1x1 as
// small products.
#include <algorithm>

#include "cpu/dense_conv.h"
#include "cpu/finish.h"
#include "cpu/kernels.h"
#include "cpu/onednn.h"

namespace kinora::cpu {
namespace {

struct Geometry {
  Shape x, w, y;
  int64_t stride, padding, groups;
  Geometry(const StepSpec& spec, int64_t step, int64_t pad, int64_t parts)
      : x(spec.inputs[0].shape),
        w(spec.inputs[1].shape),
        y(spec.output().shape),
        stride(step),
        padding(pad),
        groups(parts) {}
  explicit Geometry(const StepSpec& spec)
      : x(spec.inputs[0].shape),
        w(spec.inputs[1].shape),
        y(spec.output().shape),
        stride(spec.node.attrs.integer("stride")),
        padding(spec.node.attrs.integer("padding")),
        groups(spec.node.attrs.integer("groups")) {}
  bool depthwise() const { return groups == x[3] && groups == w[0]; }
  bool grouped_1x1() const { return groups > 1 && w[2] == 1 && w[3] == 1 && stride == 1 && padding == 0; }
};

// [channels, 1, kh, kw] -> [kh·kw, channels] in float32.
void transpose_taps(const void* weight, DType type, int64_t channels, int64_t taps, float* out) {
  std::vector<float> stored(static_cast<size_t>(taps));
  for (int64_t c = 0; c < channels; ++c) {
    simd().load(type, advance(weight, type, c * taps), stored.data(), stored.size());
    for (int64_t t = 0; t < taps; ++t) out[t * channels + c] = stored[static_cast<size_t>(t)];
  }
}

// One task makes a few rows. A weight that is known is brought into order when the step is made.
Step make_depthwise_rows(const StepSpec& spec, const Geometry& g, bool glu) {
  DType type = spec.inputs[0].dtype, wt = spec.inputs[1].dtype;
  bool biased = spec.inputs.size() == 3;
  DType bt = biased ? spec.inputs[2].dtype : DType::f32;
  int64_t channels = g.x[3], taps = g.w[2] * g.w[3];
  int64_t rows = std::clamp<int64_t>(kConvPixels / g.y[2], 1, 4), blocks = (g.y[1] + rows - 1) / rows;
  std::shared_ptr<std::vector<float>> known;
  if (spec.values[1] && (!biased || spec.values[2])) {
    known = std::make_shared<std::vector<float>>(static_cast<size_t>((taps + 1) * channels));
    transpose_taps(spec.values[1]->raw(), wt, channels, taps, known->data());
    if (biased) simd().load(bt, spec.values[2]->raw(), known->data() + taps * channels, static_cast<size_t>(channels));
  }
  size_t ready_bytes = known ? 0 : static_cast<size_t>((taps + 1) * channels) * 4;
  Step step;
  step.scratch_bytes = ready_bytes;
  step.run = [=](const StepArgs& args) {
    auto* ready = reinterpret_cast<float*>(args.scratch);
    if (!known) {
      transpose_taps(args.in[1], wt, channels, taps, ready);
      if (biased) simd().load(bt, args.in[2], ready + taps * channels, static_cast<size_t>(channels));
    }
    const float* weight = known ? known->data() : ready;
    args.pool.run(g.x[0] * blocks, [&](int64_t task, int) {
      int64_t picture = task / blocks, first = task % blocks * rows;
      std::vector<const void*> under(static_cast<size_t>(g.w[2]));
      DepthwiseRow row{.type = type,
                       .rows = under.data(),
                       .weight = weight,
                       .bias = biased ? weight + taps * channels : nullptr,
                       .channels = static_cast<size_t>(channels),
                       .kh = static_cast<size_t>(g.w[2]),
                       .kw = static_cast<size_t>(g.w[3]),
                       .stride = static_cast<size_t>(g.stride),
                       .padding = static_cast<size_t>(g.padding),
                       .width_in = static_cast<size_t>(g.x[2]),
                       .width = static_cast<size_t>(g.y[2]),
                       .glu = glu};
      for (int64_t y = first; y < std::min(g.y[1], first + rows); ++y) {
        for (int64_t ky = 0; ky < g.w[2]; ++ky) {
          int64_t from = y * g.stride - g.padding + ky;
          bool inside = from >= 0 && from < g.x[1];
          under[static_cast<size_t>(ky)] =
              inside ? advance(args.in[0], type, (picture * g.x[1] + from) * g.x[2] * channels) : nullptr;
        }
        simd().depthwise_row(row, advance(args.out, type, (picture * g.y[1] + y) * g.y[2] * g.y[3]));
      }
    });
  };
  return step;
}

// Each group is a small product over the pixels, computed in float32.
Step make_grouped_1x1(const StepSpec& spec) {
  Geometry g(spec);
  DType xt = spec.inputs[0].dtype, wt = spec.inputs[1].dtype, yt = spec.output().dtype;
  int64_t in = g.w[1], out = g.w[0] / g.groups, pixels = g.x[1] * g.x[2], block = std::min<int64_t>(256, pixels);
  int64_t blocks = (pixels + block - 1) / block, tail = pixels - (blocks - 1) * block;
  MatmulPrimitive full({block, out, in, DType::f32}), last({tail, out, in, DType::f32}, &full);
  Finish finish(spec);
  Workspace ws;
  size_t w_at = ws.add(static_cast<size_t>(in * out) * 4),
         packed_at = ws.add(std::max(full.packed_bytes(), last.packed_bytes()));
  size_t x_at = ws.add(static_cast<size_t>(block * in) * 4), y_at = ws.add(static_cast<size_t>(block * out) * 4);
  size_t work_at = ws.add(std::max(full.workspace_bytes(), last.workspace_bytes())),
         line_at = ws.add(static_cast<size_t>(out) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    args.pool.run(g.x[0] * g.groups, [&](int64_t task, int worker) {
      int64_t picture = task / g.groups, group = task % g.groups;
      float *w = ws.at(args, worker, w_at), *x = ws.at(args, worker, x_at), *y = ws.at(args, worker, y_at);
      auto* packed = ws.at<std::byte>(args, worker, packed_at);
      simd().load(wt, advance(args.in[1], wt, group * in * out), w, static_cast<size_t>(in * out));
      for (int64_t b = 0; b < blocks; ++b) {
        const MatmulPrimitive& primitive = b == blocks - 1 ? last : full;
        if (b == 0) primitive.pack(w, in, true, packed);
        int64_t n = b == blocks - 1 ? tail : block, first = picture * pixels + b * block;
        for (int64_t p = 0; p < n; ++p) {
          simd().load(xt, advance(args.in[0], xt, (first + p) * g.x[3] + group * in), x + p * in,
                      static_cast<size_t>(in));
        }
        primitive.run(x, packed, y, ws.at(args, worker, work_at));
        for (int64_t p = 0; p < n; ++p) {
          finish.apply(args, y + p * out, group * out, static_cast<size_t>(out), ws.at(args, worker, line_at));
          simd().store(yt, y + p * out, advance(args.out, yt, (first + p) * g.y[3] + group * out),
                       static_cast<size_t>(out));
        }
      }
    });
  };
  return step;
}

}  // namespace

bool supports_depthwise_glu(const StepSpec& spec) {
  return spec.node.attrs.text("act") == "none" && spec.output().shape.numel() > 0;
}

Step make_depthwise_glu(const StepSpec& spec) {
  const Shape& w = spec.inputs[1].shape;
  return make_depthwise_rows(spec, Geometry(spec, 1, w[2] / 2, w[0]), true);
}

bool supports_conv2d(const StepSpec& spec) {
  if (spec.node.attrs.text("weight_layout") != "oihw") return false;
  Geometry g(spec);
  const std::string& act = spec.node.attrs.text("act");
  bool shape = g.groups == 1 || (g.depthwise() && act == "none") || g.grouped_1x1();
  return shape && g.y.numel() > 0 && (act == "none" || act == "silu" || act == "relu" || act == "gelu_tanh");
}

Step make_conv2d(const StepSpec& spec) {
  Geometry g(spec);
  if (g.groups > 1 && g.depthwise()) return make_depthwise_rows(spec, g, false);
  return g.grouped_1x1() ? make_grouped_1x1(spec) : make_dense_conv(spec);
}

}  // namespace kinora::cpu
