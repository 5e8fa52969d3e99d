// Group norm in three passes: each task gathers mean and squared deviation of its positions, these are joined in order
// (in float64, after Chan, Golub & LeVeque), then each task applies the result to its positions.
#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kElements = 32768;  // of one task, about
constexpr int64_t kWidth = 1024;      // elements of the inner loops, about

struct Moments {
  double mean = 0, squares = 0;  // squares: sum of (x - mean)²

  void join(const Moments& other, double count, double other_count) {
    double delta = other.mean - mean, total = count + other_count;
    mean += delta * other_count / total;
    squares += other.squares + delta * delta * count * other_count / total;
  }
};

Unary activation_of(const std::string& name) {
  return name == "relu" ? Unary::relu : name == "gelu_tanh" ? Unary::gelu_tanh : Unary::silu;
}

// What the three passes share. Vectors hold the channels of several positions (a strip) side by side, so that the inner
// loops are long; a task has `rows` positions of one batch item.
struct Plan {
  DType dtype, weight_type, bias_type;
  int64_t batch, positions, channels, groups, per_group, rows, tasks, strip, wide;
  double eps;
  bool act;
  Unary unary;
  Workspace ws;
  size_t scale_at, shared, x_at, sum_at, part_at;

  explicit Plan(const StepSpec& spec)
      : dtype(spec.output().dtype), weight_type(spec.inputs[1].dtype), bias_type(spec.inputs[2].dtype) {
    const Shape& s = spec.output().shape;
    const Attrs& attrs = spec.node.attrs;
    batch = s[0], positions = s.product(1, s.rank() - 1), channels = s[-1];
    groups = attrs.integer("groups"), per_group = channels / groups;
    rows = std::clamp<int64_t>(kElements / channels, 1, positions), tasks = (positions + rows - 1) / rows;
    strip = std::clamp<int64_t>(kWidth / channels, 1, rows), wide = strip * channels;
    eps = attrs.real("eps");
    act = attrs.text("act") != "none", unary = activation_of(attrs.text("act"));
    auto aligned = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
    size_t vector = static_cast<size_t>(wide) * 4;
    scale_at = aligned(static_cast<size_t>(batch * tasks * groups) * sizeof(Moments));
    shared = scale_at + aligned(2 * static_cast<size_t>(batch) * vector);
    x_at = ws.add(static_cast<size_t>(rows * channels) * 4), sum_at = ws.add(vector), part_at = ws.add(vector);
  }

  // The elements of a task, as float32; returns how many.
  int64_t load(const StepArgs& args, int64_t task, float* x) const {
    int64_t first = task % tasks * rows, count = std::min(rows, positions - first);
    simd().load(dtype, advance(args.in[0], dtype, (task / tasks * positions + first) * channels), x,
                static_cast<size_t>(count * channels));
    return count * channels;
  }
  // Calls f(x, n) for each strip of x.
  template <class F>
  void strips(float* x, int64_t elements, const F& f) const {
    for (int64_t i = 0; i < elements; i += wide) f(x + i, static_cast<size_t>(std::min(wide, elements - i)));
  }
  // The sum of a strip's sums over one group.
  double total(const float* sum, int64_t group) const {
    double t = 0;
    for (int64_t i = 0; i < strip; ++i)
      t += static_cast<double>(simd().sum(sum + i * channels + group * per_group, static_cast<size_t>(per_group)));
    return t;
  }
  // One channels' worth of values to all positions of a strip.
  void repeat(float* values) const {
    for (int64_t i = 1; i < strip; ++i) std::copy(values, values + channels, values + i * channels);
  }

  void measure(const StepArgs& args, int64_t task, int worker, Moments* moments) const;
  void join(const StepArgs& args, int64_t b, const Moments* moments, float* scale, float* shift) const;
  void apply(const StepArgs& args, int64_t task, int worker, const float* scale, const float* shift) const;
};

// moments [groups]: of the task's positions.
void Plan::measure(const StepArgs& args, int64_t task, int worker, Moments* moments) const {
  float *x = ws.at(args, worker, x_at), *sum = ws.at(args, worker, sum_at), *part = ws.at(args, worker, part_at);
  int64_t elements = load(args, task, x);
  auto count = static_cast<double>(elements / channels * per_group);
  std::fill(sum, sum + wide, 0.0f);
  strips(x, elements, [&](float* row, size_t n) { simd().binary(Binary::add, sum, 1, row, 1, sum, n); });
  for (int64_t g = 0; g < groups; ++g) {
    moments[g].mean = total(sum, g) / count;
    std::fill(part + g * per_group, part + (g + 1) * per_group, static_cast<float>(moments[g].mean));
  }
  repeat(part);
  std::fill(sum, sum + wide, 0.0f);
  strips(x, elements, [&](float* row, size_t n) {
    simd().binary(Binary::sub, row, 1, part, 1, row, n);
    simd().binary(Binary::mul, row, 1, row, 1, row, n);
    simd().binary(Binary::add, sum, 1, row, 1, sum, n);
  });
  for (int64_t g = 0; g < groups; ++g) {
    // The float32 centre missed the mean by this much.
    double off = static_cast<double>(part[g * per_group]) - moments[g].mean;
    moments[g].squares = std::max(0.0, total(sum, g) - count * off * off);
  }
}

// From moments [batch, tasks, groups], those of item b: scale and shift [strip, channels], by which x becomes the
// result.
void Plan::join(const StepArgs& args, int64_t b, const Moments* moments, float* scale, float* shift) const {
  const Moments* own = moments + b * tasks * groups;
  simd().load(weight_type, args.in[1], scale, static_cast<size_t>(channels));
  simd().load(bias_type, args.in[2], shift, static_cast<size_t>(channels));
  for (int64_t g = 0; g < groups; ++g) {
    Moments whole = own[g];
    for (int64_t t = 1; t < tasks; ++t) {
      auto before = static_cast<double>(t * rows * per_group);
      auto next = static_cast<double>(std::min(rows, positions - t * rows) * per_group);
      whole.join(own[t * groups + g], before, next);
    }
    double factor = 1 / std::sqrt(whole.squares / static_cast<double>(positions * per_group) + eps);
    for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
      double slope = factor * static_cast<double>(scale[c]);
      scale[c] = static_cast<float>(slope);
      shift[c] = static_cast<float>(static_cast<double>(shift[c]) - whole.mean * slope);
    }
  }
  repeat(scale);
  repeat(shift);
}

void Plan::apply(const StepArgs& args, int64_t task, int worker, const float* scale, const float* shift) const {
  float* x = ws.at(args, worker, x_at);
  int64_t elements = load(args, task, x), b = task / tasks;
  strips(x, elements, [&](float* row, size_t n) {
    simd().binary(Binary::mul, row, 1, scale, 1, row, n);
    simd().binary(Binary::add, row, 1, shift, 1, row, n);
    if (act) simd().unary(unary, row, row, n);
  });
  simd().store(dtype, x, advance(args.out, dtype, (b * positions + task % tasks * rows) * channels),
               static_cast<size_t>(elements));
}

}  // namespace

bool supports_group_norm(const StepSpec& spec) {
  const std::string& act = spec.node.attrs.text("act");
  return spec.output().shape.numel() > 0 && (act == "none" || act == "silu" || act == "relu" || act == "gelu_tanh");
}

Step make_group_norm(const StepSpec& spec) {
  Plan plan(spec);
  Step step;
  step.in_place = true;
  step.scratch_bytes = plan.shared + plan.ws.total(spec.threads);
  step.run = [plan](const StepArgs& all) {
    auto* moments = reinterpret_cast<Moments*>(all.scratch);              // [batch, tasks, groups]
    auto* scale = reinterpret_cast<float*>(all.scratch + plan.scale_at);  // [batch, wide]
    float* shift = scale + plan.batch * plan.wide;
    StepArgs args{all.in, all.out, all.scratch + plan.shared, all.pool};
    args.pool.run(plan.batch * plan.tasks,
                  [&](int64_t task, int worker) { plan.measure(args, task, worker, moments + task * plan.groups); });
    for (int64_t b = 0; b < plan.batch; ++b) {
      plan.join(args, b, moments, scale + b * plan.wide, shift + b * plan.wide);
    }
    args.pool.run(plan.batch * plan.tasks, [&](int64_t task, int worker) {
      int64_t at = task / plan.tasks * plan.wide;
      plan.apply(args, task, worker, scale + at, shift + at);
    });
  };
  return step;
}

}  // namespace kinora::cpu
