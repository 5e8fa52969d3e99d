// Group norm in three passes: each task gathers mean and squared deviation of its positions, these are joined in order
// (in float64, after Chan, Golub & LeVeque), then each task applies the result to its positions.
#include <algorithm>
#include <cmath>

#include "cpu/kernels.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kElements = 32768;  // of one task, about

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

}  // namespace

bool supports_group_norm(const StepSpec& spec) {
  const std::string& act = spec.node.attrs.text("act");
  return spec.output().shape.numel() > 0 && (act == "none" || act == "silu" || act == "relu" || act == "gelu_tanh");
}

Step make_group_norm(const StepSpec& spec) {
  const Shape s = spec.output().shape;
  DType dtype = spec.output().dtype, wt = spec.inputs[1].dtype, bt = spec.inputs[2].dtype;
  int64_t channels = s[-1], groups = spec.node.attrs.integer("groups"), per_group = channels / groups;
  int64_t positions = s.product(1, s.rank() - 1), rows = std::clamp<int64_t>(kElements / channels, 1, positions);
  int64_t tasks = (positions + rows - 1) / rows, batch = s[0];
  double eps = spec.node.attrs.real("eps");
  bool act = spec.node.attrs.text("act") != "none";
  Unary unary = activation_of(spec.node.attrs.text("act"));
  size_t vector = static_cast<size_t>(channels) * 4;
  size_t moments_bytes = static_cast<size_t>(batch * tasks * groups) * sizeof(Moments);
  size_t scale_at = (moments_bytes + 63) / 64 * 64,
         shared = scale_at + (2 * static_cast<size_t>(batch) * vector + 63) / 64 * 64;
  Workspace ws;
  size_t x_at = ws.add(static_cast<size_t>(rows) * vector), sum_at = ws.add(vector), part_at = ws.add(vector);
  Step step;
  step.in_place = true;
  step.scratch_bytes = shared + ws.total(spec.threads);
  step.run = [=](const StepArgs& all) {
    auto* moments = reinterpret_cast<Moments*>(all.scratch);         // [batch, tasks, groups]
    auto* scale = reinterpret_cast<float*>(all.scratch + scale_at);  // [batch, channels]
    float* shift = scale + batch * channels;
    StepArgs args{all.in, all.out, all.scratch + shared, all.pool};
    auto n = static_cast<size_t>(channels);
    auto load = [&](int64_t task, float* x) {
      int64_t first = task % tasks * rows, count = std::min(rows, positions - first);
      simd().load(dtype, advance(args.in[0], dtype, (task / tasks * positions + first) * channels), x,
                  static_cast<size_t>(count * channels));
      return count;
    };
    args.pool.run(batch * tasks, [&](int64_t task, int worker) {
      float *x = ws.at(args, worker, x_at), *sum = ws.at(args, worker, sum_at), *part = ws.at(args, worker, part_at);
      int64_t count = load(task, x);
      Moments* out = moments + task * groups;
      auto total = [&](int64_t group) {
        return static_cast<double>(simd().sum(sum + group * per_group, static_cast<size_t>(per_group)));
      };
      std::fill(sum, sum + n, 0.0f);
      for (int64_t r = 0; r < count; ++r) simd().binary(Binary::add, sum, 1, x + r * channels, 1, sum, n);
      for (int64_t g = 0; g < groups; ++g) {
        out[g].mean = total(g) / static_cast<double>(count * per_group);
        std::fill(part + g * per_group, part + (g + 1) * per_group, static_cast<float>(out[g].mean));
      }
      std::fill(sum, sum + n, 0.0f);
      for (int64_t r = 0; r < count; ++r) {
        float* row = x + r * channels;
        simd().binary(Binary::sub, row, 1, part, 1, row, n);
        simd().binary(Binary::mul, row, 1, row, 1, row, n);
        simd().binary(Binary::add, sum, 1, row, 1, sum, n);
      }
      for (int64_t g = 0; g < groups; ++g) {
        double off =
            static_cast<double>(part[g * per_group]) - out[g].mean;  // the float32 centre missed the mean by this
        out[g].squares = std::max(0.0, total(g) - static_cast<double>(count * per_group) * off * off);
      }
    });
    for (int64_t b = 0; b < batch; ++b) {
      float *w = scale + b * channels, *bias = shift + b * channels;
      simd().load(wt, args.in[1], w, n);
      simd().load(bt, args.in[2], bias, n);
      for (int64_t g = 0; g < groups; ++g) {
        Moments whole = moments[b * tasks * groups + g];
        for (int64_t t = 1; t < tasks; ++t) {
          auto before = static_cast<double>(t * rows * per_group);
          auto next = static_cast<double>(std::min(rows, positions - t * rows) * per_group);
          whole.join(moments[(b * tasks + t) * groups + g], before, next);
        }
        double factor = 1 / std::sqrt(whole.squares / static_cast<double>(positions * per_group) + eps);
        for (int64_t c = g * per_group; c < (g + 1) * per_group; ++c) {
          double slope = factor * static_cast<double>(w[c]);
          w[c] = static_cast<float>(slope);
          bias[c] = static_cast<float>(static_cast<double>(bias[c]) - whole.mean * slope);
        }
      }
    }
    args.pool.run(batch * tasks, [&](int64_t task, int worker) {
      float* x = ws.at(args, worker, x_at);
      int64_t count = load(task, x), b = task / tasks;
      for (int64_t r = 0; r < count; ++r) {
        float* row = x + r * channels;
        simd().binary(Binary::mul, row, 1, scale + b * channels, 1, row, n);
        simd().binary(Binary::add, row, 1, shift + b * channels, 1, row, n);
      }
      auto elements = static_cast<size_t>(count * channels);
      if (act) simd().unary(unary, x, x, elements);
      simd().store(dtype, x, advance(args.out, dtype, (b * positions + task % tasks * rows) * channels), elements);
    });
  };
  return step;
}

}  // namespace kinora::cpu
