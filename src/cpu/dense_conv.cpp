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

// The convolution of a step, with all that is the same in each run.
class DenseConv {
 public:
  explicit DenseConv(const StepSpec& spec)
      : g_(spec),
        x_type_(spec.inputs[0].dtype),
        w_type_(spec.inputs[1].dtype),
        compute_(x_type_ == DType::bf16 && has_native_bf16() ? DType::bf16 : DType::f32),
        plan_(g_, compute_),
        finish_(spec),
        copy_x_(x_type_ != compute_ || g_.t.kernel > 1),
        convert_w_(w_type_ != compute_) {
    auto groups = [&] { return (plan_.blocks + per_task_ - 1) / per_task_; };
    per_task_ = plan_.blocks;
    while (per_task_ > 1 && g_.frames() * plan_.panels * groups() < kManyTasks) per_task_ = (per_task_ + 1) / 2;
    groups_ = groups();
    lay_out_scratch();
  }

  size_t scratch_bytes(int threads) const { return ws_.total(threads); }

  void run(const StepArgs& args) const {
    args.pool.run(g_.frames() * plan_.panels * groups_, [&](int64_t task, int worker) {
      int64_t group = task % groups_, panel = task / groups_ % plan_.panels, item = task / groups_ / plan_.panels;
      run_group({args, worker, item, panel}, group);
    });
  }

 private:
  struct Task {
    const StepArgs& args;
    int worker;
    int64_t item, panel;  // item: of the output frames of all batch items
  };

  void lay_out_scratch() {
    auto bytes = [&](int64_t elements) { return static_cast<size_t>(elements) * dtype_size(compute_); };
    w_at_ = ws_.add(convert_w_ ? bytes(kPanel * per_output_) : 0);
    packed_at_ = ws_.add(plan_.packed);
    work_at_ = ws_.add(plan_.workspace);
    line_at_ = ws_.add(static_cast<size_t>(std::max({per_output_, row_in_, kPanel})) * 4);
    x_at_ = ws_.add(copy_x_ ? bytes(plan_.most_in) : 0);
    y_at_ = ws_.add(static_cast<size_t>(plan_.rows * g_.w.out * kPanel) * 4);
  }

  void run_group(const Task& task, int64_t group) const {
    int64_t frame = task.item % g_.t.out, begin = group * per_task_, end = std::min(plan_.blocks, begin + per_task_);
    const void* w = weight_of(task);
    auto* packed = scratch<std::byte>(task, packed_at_);
    for (int64_t block = begin; block < end; ++block) {
      DensePlan::Key key = plan_.key(frame, block, task.panel);
      const ConvPrimitive& primitive = plan_.at(key);
      // Layouts may differ between calls of different shape, so pack for each shape anew only when it changes.
      if (block == begin || key != plan_.key(frame, block - 1, task.panel)) primitive.pack(w, packed);
      int64_t rows = key[0];
      primitive.run(input_of(task, block, rows), packed, scratch(task, y_at_), scratch(task, work_at_));
      store(task, block, rows);
    }
  }

  // The panel's part of the weight, in the type of the product.
  const void* weight_of(const Task& task) const {
    const void* w = advance(task.args.in[1], w_type_, task.panel * kPanel * per_output_);
    if (!convert_w_) return w;
    auto* converted = scratch<std::byte>(task, w_at_);
    convert_rows({w_type_, compute_, width(task), per_output_}, w, converted, scratch(task, line_at_));
    return converted;
  }

  // What `n` rows of the result read, of each of their frames, in the type of the product.
  const void* input_of(const Task& task, int64_t block, int64_t n) const {
    Axis::Window frames = g_.t.window(task.item % g_.t.out, 1), rows = g_.h.window(block * plan_.rows, n);
    int64_t first = task.item / g_.t.out * g_.t.in + frames.begin;
    auto source = [&](int64_t f) {
      return advance(task.args.in[0], x_type_, ((first + f) * g_.h.in + rows.begin) * row_in_);
    };
    if (!copy_x_) return source(0);
    auto* target = scratch<std::byte>(task, x_at_);
    for (int64_t f = 0; f < frames.size; ++f) {
      convert_rows({x_type_, compute_, rows.size, row_in_}, source(f),
                   advance(target, compute_, f * rows.size * row_in_), scratch(task, line_at_));
    }
    return target;
  }

  void store(const Task& task, int64_t block, int64_t rows) const {
    int64_t channel = task.panel * kPanel, n = width(task);
    int64_t first = ((task.item * g_.h.out + block * plan_.rows) * g_.w.out) * g_.out + channel;
    float *y = scratch(task, y_at_), *line = scratch(task, line_at_);
    for (int64_t p = 0; p < rows * g_.w.out; ++p) {
      finish_.apply(task.args, y + p * n, channel, static_cast<size_t>(n), line);
      simd().store(finish_.out_type, y + p * n, advance(task.args.out, finish_.out_type, first + p * g_.out),
                   static_cast<size_t>(n));
    }
  }

  int64_t width(const Task& task) const { return std::min(kPanel, g_.out - task.panel * kPanel); }
  template <class T = float>
  T* scratch(const Task& task, size_t at) const {
    return ws_.at<T>(task.args, task.worker, at);
  }

  ConvGeometry g_;
  DType x_type_, w_type_, compute_;
  DensePlan plan_;
  Finish finish_;
  bool copy_x_;  // rows of several frames do not lie together, so they are copied like those of another type
  bool convert_w_;
  int64_t per_output_ = g_.in * g_.taps(), row_in_ = g_.w.in * g_.in;
  int64_t per_task_ = 0, groups_ = 0;  // blocks of a task, and how many tasks make a frame's panel
  Workspace ws_;
  size_t w_at_ = 0, packed_at_ = 0, work_at_ = 0, line_at_ = 0, x_at_ = 0, y_at_ = 0;
};

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
  auto conv = std::make_shared<const DenseConv>(spec);
  Step step;
  step.scratch_bytes = conv->scratch_bytes(spec.threads);
  step.run = [conv](const StepArgs& args) { conv->run(args); };
  return step;
}

}  // namespace kinora::cpu
