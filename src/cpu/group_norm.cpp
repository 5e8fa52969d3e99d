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
  // Vectors hold the channels of several positions side by side, so that the inner loops are long.
  int64_t strip = std::clamp<int64_t>(kWidth / channels, 1, rows), wide = strip * channels;
  double eps = spec.node.attrs.real("eps");
  bool act = spec.node.attrs.text("act") != "none";
  Unary unary = activation_of(spec.node.attrs.text("act"));
  auto aligned = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  size_t vector = static_cast<size_t>(wide) * 4;
  size_t scale_at = aligned(static_cast<size_t>(batch * tasks * groups) * sizeof(Moments));
  size_t shared = scale_at + aligned(2 * static_cast<size_t>(batch) * vector);
  Workspace ws;
  size_t x_at = ws.add(static_cast<size_t>(rows * channels) * 4), sum_at = ws.add(vector), part_at = ws.add(vector);
  Step step;
  step.in_place = true;
  step.scratch_bytes = shared + ws.total(spec.threads);
  step.run = [=](const StepArgs& all) {
    auto* moments = reinterpret_cast<Moments*>(all.scratch);         // [batch, tasks, groups]
    auto* scale = reinterpret_cast<float*>(all.scratch + scale_at);  // [batch, wide]
    float* shift = scale + batch * wide;
    StepArgs args{all.in, all.out, all.scratch + shared, all.pool};
    auto load = [&](int64_t task, float* x) {
      int64_t first = task % tasks * rows, count = std::min(rows, positions - first);
      simd().load(dtype, advance(args.in[0], dtype, (task / tasks * positions + first) * channels), x,
                  static_cast<size_t>(count * channels));
      return count * channels;
    };
    // Calls f(x, n) for each strip of x.
    auto strips = [=](float* x, int64_t elements, const auto& f) {
      for (int64_t i = 0; i < elements; i += wide) f(x + i, static_cast<size_t>(std::min(wide, elements - i)));
    };
    args.pool.run(batch * tasks, [&](int64_t task, int worker) {
      float *x = ws.at(args, worker, x_at), *sum = ws.at(args, worker, sum_at), *part = ws.at(args, worker, part_at);
      int64_t elements = load(task, x), count = elements / channels;
      Moments* out = moments + task * groups;
      auto total = [&](int64_t group) {
        double t = 0;
        for (int64_t i = 0; i < strip; ++i)
          t += static_cast<double>(simd().sum(sum + i * channels + group * per_group, static_cast<size_t>(per_group)));
        return t;
      };
      std::fill(sum, sum + wide, 0.0f);
      strips(x, elements, [&](float* row, size_t n) { simd().binary(Binary::add, sum, 1, row, 1, sum, n); });
      for (int64_t g = 0; g < groups; ++g) {
        out[g].mean = total(g) / static_cast<double>(count * per_group);
        std::fill(part + g * per_group, part + (g + 1) * per_group, static_cast<float>(out[g].mean));
      }
      for (int64_t i = 1; i < strip; ++i) std::copy(part, part + channels, part + i * channels);
      std::fill(sum, sum + wide, 0.0f);
      strips(x, elements, [&](float* row, size_t n) {
        simd().binary(Binary::sub, row, 1, part, 1, row, n);
        simd().binary(Binary::mul, row, 1, row, 1, row, n);
        simd().binary(Binary::add, sum, 1, row, 1, sum, n);
      });
      for (int64_t g = 0; g < groups; ++g) {
        // The float32 centre missed the mean by this much.
        double off = static_cast<double>(part[g * per_group]) - out[g].mean;
        out[g].squares = std::max(0.0, total(g) - static_cast<double>(count * per_group) * off * off);
      }
    });
    for (int64_t b = 0; b < batch; ++b) {
      float *w = scale + b * wide, *bias = shift + b * wide;
      simd().load(wt, args.in[1], w, static_cast<size_t>(channels));
      simd().load(bt, args.in[2], bias, static_cast<size_t>(channels));
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
      for (int64_t i = 1; i < strip; ++i) {
        std::copy(w, w + channels, w + i * channels);
        std::copy(bias, bias + channels, bias + i * channels);
      }
    }
    args.pool.run(batch * tasks, [&](int64_t task, int worker) {
      float* x = ws.at(args, worker, x_at);
      int64_t elements = load(task, x), b = task / tasks;
      strips(x, elements, [&](float* row, size_t n) {
        simd().binary(Binary::mul, row, 1, scale + b * wide, 1, row, n);
        simd().binary(Binary::add, row, 1, shift + b * wide, 1, row, n);
        if (act) simd().unary(unary, row, row, n);
      });
      simd().store(dtype, x, advance(args.out, dtype, (b * positions + task % tasks * rows) * channels),
                   static_cast<size_t>(elements));
    });
  };
  return step;
}

}  // namespace kinora::cpu
