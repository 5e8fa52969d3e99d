#include "cpu/dense_conv.h"

#include <array>
#include <cstring>
#include <map>

#include "cpu/finish.h"
#include "cpu/kernels.h"
#include "cpu/onednn.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kPanel = 128;  // output channels of a task
constexpr int64_t kManyTasks = 64;

// The oneDNN primitives of a dense convolution: few distinct ones occur, since all inner blocks are alike.
class DensePlan {
 public:
  int64_t rows, blocks, panels, most_in = 0;  // rows of a block; most input elements that a block reads
  size_t packed = 0, workspace = 0;

  DensePlan(const ConvGeometry& geometry, DType compute) : g_(geometry) {
    rows = std::clamp<int64_t>(kConvPixels / g_.w.out, 1, g_.h.out);
    blocks = (g_.h.out + rows - 1) / rows;
    panels = (g_.out + kPanel - 1) / kPanel;
    for (int64_t frame = 0; frame < g_.t.out; ++frame) {
      for (int64_t block = 0; block < blocks; ++block) {
        for (int64_t panel : {int64_t{0}, panels - 1}) add(key(frame, block, panel), compute);
      }
    }
  }

  // Rows out, rows in, zeros above, below, channels, frames in, zeros in front.
  using Key = std::array<int64_t, 7>;
  Key key(int64_t frame, int64_t block, int64_t panel) const {
    int64_t n = std::min(rows, g_.h.out - block * rows);
    Axis::Window h = g_.h.window(block * rows, n), t = g_.t.window(frame, 1);
    return {n, h.size, h.before, h.after, std::min(kPanel, g_.out - panel * kPanel), t.size, t.before};
  }
  const ConvPrimitive& at(const Key& key) const { return primitives_.at(key); }

 private:
  void add(const Key& k, DType compute) {
    if (primitives_.count(k)) return;
    Axis::Window w = g_.w.window(0, g_.w.out);
    ConvPrimitive primitive({.in_channels = g_.in,
                             .out_channels = k[4],
                             .x_pixel = g_.in,
                             .y_pixel = k[4],
                             .rows_in = k[1],
                             .width_in = g_.w.in,
                             .rows_out = k[0],
                             .width_out = g_.w.out,
                             .kernel_h = g_.h.kernel,
                             .kernel_w = g_.w.kernel,
                             .stride = g_.h.stride,
                             .pad_top = k[2],
                             .pad_bottom = k[3],
                             .pad_left = w.before,
                             .pad_right = (g_.w.out - 1) * g_.w.stride + g_.w.kernel - g_.w.padding - g_.w.in,
                             .dtype = compute,
                             .stride_w = g_.w.stride,
                             .frames_in = k[5],
                             .kernel_t = g_.t.kernel,
                             .pad_front = k[6]});
    packed = std::max(packed, primitive.packed_bytes());
    workspace = std::max(workspace, primitive.workspace_bytes());
    most_in = std::max(most_in, k[5] * k[1] * g_.w.in * g_.in);
    primitives_.emplace(k, std::move(primitive));
  }

  ConvGeometry g_;
  std::map<Key, ConvPrimitive> primitives_;
};

struct Conversion {
  DType from, to;
  int64_t rows, n;
};

// `line`: n floats.
void convert_rows(const Conversion& c, const void* source, std::byte* target, float* line) {
  if (c.from == c.to) {
    std::memcpy(target, source, static_cast<size_t>(c.rows * c.n) * dtype_size(c.from));
    return;
  }
  for (int64_t r = 0; r < c.rows; ++r) {
    simd().load(c.from, advance(source, c.from, r * c.n), line, static_cast<size_t>(c.n));
    simd().store(c.to, line, advance(target, c.to, r * c.n), static_cast<size_t>(c.n));
  }
}

}  // namespace

ConvGeometry::ConvGeometry(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &k = spec.inputs[1].shape, &y = spec.output().shape;
  const Attrs& attrs = spec.node.attrs;
  batch = x[0];
  in = x[-1];
  out = y[-1];
  groups = attrs.integer("groups");
  if (x.rank() == 4) {
    int64_t stride = attrs.integer("stride"), padding = attrs.integer("padding");
    t = {1, 1, 1, 1, 0};
    h = {x[1], y[1], k[2], stride, padding};
    w = {x[2], y[2], k[3], stride, padding};
    return;
  }
  const Ints &stride = attrs.ints("stride"), &padding = attrs.ints("padding");
  t = {x[1], y[1], k[2], stride[0], padding[0]};
  h = {x[2], y[2], k[3], stride[1], padding[1]};
  w = {x[3], y[3], k[4], stride[2], padding[2]};
}

Step make_dense_conv(const StepSpec& spec) {
  ConvGeometry g(spec);
  DType xt = spec.inputs[0].dtype, wt = spec.inputs[1].dtype;
  DType compute = xt == DType::bf16 && has_native_bf16() ? DType::bf16 : DType::f32;
  auto plan = std::make_shared<const DensePlan>(g, compute);
  // Rows of several frames do not lie together, so they are copied like those of another type.
  bool copy_x = xt != compute || g.t.kernel > 1, convert_w = wt != compute;
  int64_t per_task = plan->blocks;
  while (per_task > 1 && g.frames() * plan->panels * ((plan->blocks + per_task - 1) / per_task) < kManyTasks)
    per_task = (per_task + 1) / 2;
  int64_t tasks_per_panel = (plan->blocks + per_task - 1) / per_task;
  Finish finish(spec);
  int64_t per_output = g.in * g.taps(), row_in = g.w.in * g.in;
  Workspace ws;
  size_t w_at = ws.add(convert_w ? static_cast<size_t>(kPanel * per_output) * dtype_size(compute) : 0);
  size_t packed_at = ws.add(plan->packed), work_at = ws.add(plan->workspace);
  size_t line_at = ws.add(static_cast<size_t>(std::max({per_output, row_in, kPanel})) * 4);
  size_t x_at = ws.add(copy_x ? static_cast<size_t>(plan->most_in) * dtype_size(compute) : 0);
  size_t y_at = ws.add(static_cast<size_t>(plan->rows * g.w.out * kPanel) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    args.pool.run(g.frames() * plan->panels * tasks_per_panel, [&](int64_t task, int worker) {
      int64_t group = task % tasks_per_panel, panel = task / tasks_per_panel % plan->panels;
      int64_t item = task / tasks_per_panel / plan->panels, frame = item % g.t.out, channel = panel * kPanel,
              width = std::min(kPanel, g.out - channel);
      float* line = ws.at(args, worker, line_at);
      auto convert = [&](const void* source, DType type, int64_t lines, int64_t n, std::byte* target) {
        convert_rows({type, compute, lines, n}, source, target, line);
      };
      const void* w = advance(args.in[1], wt, channel * per_output);
      if (convert_w) {
        convert(w, wt, width, per_output, ws.at<std::byte>(args, worker, w_at));
        w = ws.at<std::byte>(args, worker, w_at);
      }
      auto* packed_w = ws.at<std::byte>(args, worker, packed_at);
      Axis::Window frames = g.t.window(frame, 1);
      int64_t first_frame = item / g.t.out * g.t.in + frames.begin;
      bool fresh = true;
      for (int64_t block = group * per_task; block < std::min(plan->blocks, (group + 1) * per_task); ++block) {
        DensePlan::Key key = plan->key(frame, block, panel);
        const ConvPrimitive& primitive = plan->at(key);
        // Layouts may differ between calls of different shape, so pack for each shape anew only when it changes.
        if (fresh || key != plan->key(frame, block - 1, panel)) primitive.pack(w, packed_w);
        fresh = false;
        int64_t n = key[0];
        Axis::Window rows = g.h.window(block * plan->rows, n);
        auto source = [&](int64_t f) {
          return advance(args.in[0], xt, ((first_frame + f) * g.h.in + rows.begin) * row_in);
        };
        const void* x = source(0);
        if (copy_x) {
          auto* target = ws.at<std::byte>(args, worker, x_at);
          for (int64_t f = 0; f < frames.size; ++f)
            convert(source(f), xt, rows.size, row_in, advance(target, compute, f * rows.size * row_in));
          x = target;
        }
        float* y = ws.at(args, worker, y_at);
        primitive.run(x, packed_w, y, ws.at(args, worker, work_at));
        int64_t first = ((item * g.h.out + block * plan->rows) * g.w.out) * g.out + channel;
        for (int64_t p = 0; p < n * g.w.out; ++p) {
          finish.apply(args, y + p * width, channel, static_cast<size_t>(width), line);
          simd().store(finish.out_type, y + p * width, advance(args.out, finish.out_type, first + p * g.out),
                       static_cast<size_t>(width));
        }
      }
    });
  };
  return step;
}

}  // namespace kinora::cpu
