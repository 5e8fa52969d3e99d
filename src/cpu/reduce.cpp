#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"

namespace kinora::cpu {
namespace {

// Reduces any set of axes: kept axes index the results, reduced axes are walked in order for each of them.
struct ReducePlan {
  std::vector<int64_t> kept_dims, kept_strides, dims, strides;
  int64_t results = 1, terms = 1;
  bool inner_contiguous = false;

  explicit ReducePlan(const StepSpec& spec) {
    const Shape& in = spec.inputs[0].shape;
    const Ints& axes = spec.node.attrs.ints("axes");
    int64_t stride = in.numel();
    for (int i = 0; i < in.rank(); ++i) {
      stride /= std::max<int64_t>(in[i], 1);
      if (in[i] == 1) continue;
      bool reduced = std::find(axes.begin(), axes.end(), i) != axes.end();
      (reduced ? dims : kept_dims).push_back(in[i]);
      (reduced ? strides : kept_strides).push_back(stride);
      (reduced ? terms : results) *= in[i];
    }
    inner_contiguous = dims.size() == 1 && strides[0] == 1;
  }

  static int64_t offset(int64_t index, const std::vector<int64_t>& dims, const std::vector<int64_t>& strides) {
    int64_t at = 0;
    for (size_t i = dims.size(); i-- > 0;) {
      at += index % dims[i] * strides[i];
      index /= dims[i];
    }
    return at;
  }
};

constexpr int64_t kTerms = 4096;  // terms gathered at a time

template <bool kMax>
Step make_reduce(const StepSpec& spec) {
  ReducePlan plan(spec);
  DType dtype = spec.inputs[0].dtype;
  Workspace ws;
  size_t buffer = ws.add(kTerms * sizeof(float));
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    int64_t per_task = std::max<int64_t>(1, kTerms / std::max<int64_t>(plan.terms, 1));
    args.pool.run((plan.results + per_task - 1) / per_task, [&](int64_t task, int worker) {
      float* terms = ws.at(args, worker, buffer);
      for (int64_t r = task * per_task; r < std::min(plan.results, (task + 1) * per_task); ++r) {
        int64_t base = ReducePlan::offset(r, plan.kept_dims, plan.kept_strides);
        float total = kMax ? -std::numeric_limits<float>::infinity() : 0;
        for (int64_t begin = 0; begin < plan.terms; begin += kTerms) {
          int64_t n = std::min(kTerms, plan.terms - begin);
          if (plan.inner_contiguous || plan.terms == 1) {
            simd().load(dtype, advance(args.in[0], dtype, base + begin), terms, static_cast<size_t>(n));
          } else {
            for (int64_t i = 0; i < n; ++i) {
              int64_t at = base + ReducePlan::offset(begin + i, plan.dims, plan.strides);
              simd().load(dtype, advance(args.in[0], dtype, at), terms + i, 1);
            }
          }
          auto count = static_cast<size_t>(n);
          total = kMax ? std::max(total, simd().max(terms, count)) : total + simd().sum(terms, count);
        }
        simd().store(dtype, &total, advance(args.out, dtype, r), 1);
      }
    });
  };
  return step;
}

// Applies f to each row of the last axis in float32; f(x, n, y) may work in place.
template <class F>
Step map_rows(const StepSpec& spec, F f) {
  DType dtype = spec.output().dtype;
  int64_t n = spec.output().shape[-1], rows = spec.output().shape.numel() / std::max<int64_t>(n, 1);
  Workspace ws;
  size_t buffer = ws.add(static_cast<size_t>(n) * sizeof(float));
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.in_place = true;
  step.run = [=](const StepArgs& args) {
    int64_t per_task = std::max<int64_t>(1, 16384 / n);
    args.pool.run((rows + per_task - 1) / per_task, [&](int64_t task, int worker) {
      for (int64_t row = task * per_task; row < std::min(rows, (task + 1) * per_task); ++row) {
        float* x = ws.at(args, worker, buffer);
        simd().load(dtype, advance(args.in[0], dtype, row * n), x, static_cast<size_t>(n));
        f(args, row, x, static_cast<size_t>(n));
        simd().store(dtype, x, advance(args.out, dtype, row * n), static_cast<size_t>(n));
      }
    });
  };
  return step;
}

// A weight vector as float32: converted when the step is made, since its value is known then.
std::shared_ptr<std::vector<float>> known_vector(const StepSpec& spec, size_t index) {
  if (index >= spec.inputs.size() || !spec.values[index]) return nullptr;
  auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(spec.inputs[index].shape.numel()));
  to_float(spec.inputs[index].dtype, spec.values[index]->raw(), values->data(), values->size());
  return values;
}

}  // namespace

std::vector<int64_t> row_index(const Shape& operand, const Shape& x) {
  int extra = x.rank() - operand.rank();
  int64_t rows = x.numel() / x[-1];
  std::vector<int64_t> index(static_cast<size_t>(rows));
  for (int64_t r = 0; r < rows; ++r) {
    int64_t rest = r, at = 0, stride = 1;
    for (int i = x.rank() - 2; i >= 0; --i) {
      int64_t coordinate = rest % x[i];
      rest /= x[i];
      if (i < extra) continue;
      if (operand[i - extra] != 1) at += coordinate * stride;
      stride *= operand[i - extra];
    }
    index[static_cast<size_t>(r)] = at;
  }
  return index;
}

Step make_sum(const StepSpec& spec) { return make_reduce<false>(spec); }
Step make_max(const StepSpec& spec) { return make_reduce<true>(spec); }

Step make_softmax(const StepSpec& spec) {
  return map_rows(spec, [](const StepArgs&, int64_t, float* x, size_t n) {
    float total = simd().exp_sum(x, simd().max(x, n), n);
    simd().affine(x, 1 / total, 0, x, n);
  });
}

Step make_layer_norm(const StepSpec& spec) {
  double eps = spec.node.attrs.real("eps");
  DType dtype = spec.output().dtype;
  bool modulated = spec.inputs.size() == 3;
  const Shape x_shape = spec.output().shape;
  int64_t n = x_shape[-1];
  std::vector<int64_t> scale_row, shift_row;
  if (modulated) {
    check(spec.inputs[1].shape.rank() > 0 && spec.inputs[1].shape[-1] == n && spec.inputs[2].shape.rank() > 0 &&
              spec.inputs[2].shape[-1] == n,
          "layer_norm: scale and shift need the full last axis");
    scale_row = row_index(spec.inputs[1].shape, x_shape);
    shift_row = row_index(spec.inputs[2].shape, x_shape);
  }
  return map_rows(spec, [=](const StepArgs& args, int64_t row, float* x, size_t count) {
    float mean = simd().sum(x, count) / static_cast<float>(count);
    float variance = simd().sum_square_diff(x, mean, count) / static_cast<float>(count);
    simd().normalize(x, mean, 1 / std::sqrt(variance + static_cast<float>(eps)), nullptr, 0, nullptr, x, count);
    if (!modulated) return;
    auto at = static_cast<size_t>(row);
    constexpr size_t kPart = 512;
    float scale[kPart], shift[kPart];
    for (size_t i = 0; i < count; i += kPart) {
      size_t m = std::min(kPart, count - i);
      auto column = static_cast<int64_t>(i);
      simd().load(dtype, advance(args.in[1], dtype, scale_row[at] * n + column), scale, m);
      simd().load(dtype, advance(args.in[2], dtype, shift_row[at] * n + column), shift, m);
      simd().normalize(x + i, 0, 1, scale, 1, shift, x + i, m);
    }
  });
}

Step make_rms_norm(const StepSpec& spec) {
  double eps = spec.node.attrs.real("eps");
  auto offset = static_cast<float>(spec.node.attrs.real("offset"));
  auto weight = known_vector(spec, 1), bias = known_vector(spec, 2);
  bool late_weight = spec.inputs.size() > 1 && !weight, late_bias = spec.inputs.size() > 2 && !bias;
  DType weight_type = spec.inputs.size() > 1 ? spec.inputs[1].dtype : DType::f32;
  DType bias_type = spec.inputs.size() > 2 ? spec.inputs[2].dtype : DType::f32;
  return map_rows(spec, [=](const StepArgs& args, int64_t, float* x, size_t n) {
    float mean_square = simd().sum_square_diff(x, 0, n) / static_cast<float>(n);
    float factor = 1 / std::sqrt(mean_square + static_cast<float>(eps));
    std::vector<float> w, b;  // only when the weights are computed by the graph itself
    if (late_weight) {
      w.resize(n);
      simd().load(weight_type, args.in[1], w.data(), n);
    }
    if (late_bias) {
      b.resize(n);
      simd().load(bias_type, args.in[2], b.data(), n);
    }
    const float* wp = weight ? weight->data() : late_weight ? w.data() : nullptr;
    const float* bp = bias ? bias->data() : late_bias ? b.data() : nullptr;
    simd().normalize(x, 0, factor, wp, offset, bp, x, n);
  });
}

}  // namespace kinora::cpu
