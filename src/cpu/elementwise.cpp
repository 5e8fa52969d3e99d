#include "ops/elementwise.h"

#include <algorithm>
#include <map>

#include "cpu/kernels.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kBlock = 8192;  // elements of one task; two float32 blocks stay in the first-level cache

int64_t blocks(int64_t count) { return (count + kBlock - 1) / kBlock; }

// y = f(x) elementwise, in blocks; f works on float32 and may write in place.
template <class F>
Step map_blocks(const StepSpec& spec, F f) {
  DType from = spec.inputs[0].dtype, to = spec.output().dtype;
  int64_t count = spec.output().shape.numel();
  Workspace ws;
  size_t buffer = ws.add(kBlock * sizeof(float));
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.in_place = from == to;
  step.run = [=](const StepArgs& args) {
    args.pool.run(blocks(count), [&](int64_t task, int worker) {
      int64_t begin = task * kBlock;
      auto n = static_cast<size_t>(std::min(kBlock, count - begin));
      const std::byte* x = advance(args.in[0], from, begin);
      std::byte* y = advance(args.out, to, begin);
      float* block = to == DType::f32 ? reinterpret_cast<float*>(y) : ws.at(args, worker, buffer);
      const float* source = block;
      if (from == DType::f32) {
        source = reinterpret_cast<const float*>(x);
      } else {
        simd().load(from, x, block, n);
      }
      f(source, block, n);
      if (to != DType::f32) simd().store(to, block, y, n);
    });
  };
  return step;
}

const std::map<std::string_view, Unary>& unary_ops() {
  static const std::map<std::string_view, Unary> ops{
      {"exp", Unary::exp},     {"log", Unary::log},         {"sqrt", Unary::sqrt},
      {"rsqrt", Unary::rsqrt}, {"sin", Unary::sin},         {"cos", Unary::cos},
      {"tanh", Unary::tanh},   {"sigmoid", Unary::sigmoid}, {"relu", Unary::relu},
      {"step", Unary::step},   {"silu", Unary::silu},       {"gelu_tanh", Unary::gelu_tanh},
      {"erf", Unary::erf},     {"gelu", Unary::gelu},       {"quick_gelu", Unary::quick_gelu}};
  return ops;
}

// Both inputs' strides over the output's axes, neighbouring axes merged where both walk on contiguously.
struct BroadcastLoop {
  std::vector<int64_t> dims, a, b;
};

std::vector<int64_t> strides_for(const Shape& shape, const Shape& out) {
  std::vector<int64_t> strides(static_cast<size_t>(out.rank()), 0);
  int64_t stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    if (shape[i] != 1) strides[static_cast<size_t>(i + out.rank() - shape.rank())] = stride;
    stride *= shape[i];
  }
  return strides;
}

BroadcastLoop make_loop(const StepSpec& spec) {
  const Shape& out = spec.output().shape;
  std::vector<int64_t> sa = strides_for(spec.inputs[0].shape, out), sb = strides_for(spec.inputs[1].shape, out);
  BroadcastLoop loop;
  for (int i = 0; i < out.rank(); ++i) {
    auto at = static_cast<size_t>(i);
    if (out[i] == 1) continue;
    if (!loop.dims.empty() && loop.a.back() == sa[at] * out[i] && loop.b.back() == sb[at] * out[i]) {
      loop.dims.back() *= out[i];
      loop.a.back() = sa[at];
      loop.b.back() = sb[at];
    } else {
      loop.dims.push_back(out[i]);
      loop.a.push_back(sa[at]);
      loop.b.push_back(sb[at]);
    }
  }
  if (loop.dims.empty() || (loop.a.back() > 1 || loop.b.back() > 1)) {
    loop.dims.push_back(1);
    loop.a.push_back(1);
    loop.b.push_back(1);
  }
  return loop;
}

}  // namespace

Step make_unary(const StepSpec& spec) {
  Unary op = unary_ops().at(spec.node.op->name);
  return map_blocks(spec, [op](const float* x, float* y, size_t n) { simd().unary(op, x, y, n); });
}

Step make_affine(const StepSpec& spec) {
  auto scale = static_cast<float>(spec.node.attrs.real("scale")),
       shift = static_cast<float>(spec.node.attrs.real("shift"));
  return map_blocks(spec, [=](const float* x, float* y, size_t n) { simd().affine(x, scale, shift, y, n); });
}

Step make_clamp(const StepSpec& spec) {
  auto low = static_cast<float>(spec.node.attrs.real("low")), high = static_cast<float>(spec.node.attrs.real("high"));
  return map_blocks(spec, [=](const float* x, float* y, size_t n) { simd().clamp(x, low, high, y, n); });
}

Step make_cast(const StepSpec& spec) {
  return map_blocks(spec, [](const float* x, float* y, size_t n) {
    if (x != y) std::copy(x, x + n, y);
  });
}

Step make_binary(const StepSpec& spec) {
  static const std::map<std::string_view, Binary> ops{
      {"add", Binary::add}, {"sub", Binary::sub}, {"mul", Binary::mul}, {"div", Binary::div}};
  Binary op = ops.at(spec.node.op->name);
  DType dtype = spec.output().dtype;
  BroadcastLoop loop = make_loop(spec);
  int64_t inner = loop.dims.back(), outer = spec.output().shape.numel() / std::max<int64_t>(inner, 1);
  int64_t parts = blocks(inner), rows = std::max<int64_t>(1, kBlock / std::max<int64_t>(inner, 1));
  bool stride_a = loop.a.back() != 0, stride_b = loop.b.back() != 0;
  Workspace ws;
  size_t buffer_a = ws.add(kBlock * sizeof(float)), buffer_b = ws.add(kBlock * sizeof(float));
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.in_place = spec.inputs[0] == spec.output();
  step.run = [=](const StepArgs& args) {
    auto part = [&](int64_t row, int64_t p, int worker) {
      int64_t at_a = 0, at_b = 0, rest = row;
      for (size_t i = loop.dims.size() - 1; i-- > 0;) {
        at_a += rest % loop.dims[i] * loop.a[i];
        at_b += rest % loop.dims[i] * loop.b[i];
        rest /= loop.dims[i];
      }
      int64_t begin = p * kBlock;
      auto n = static_cast<size_t>(std::min(kBlock, inner - begin));
      const std::byte* a = advance(args.in[0], dtype, at_a + (stride_a ? begin : 0));
      const std::byte* b = advance(args.in[1], dtype, at_b + (stride_b ? begin : 0));
      std::byte* y = advance(args.out, dtype, row * inner + begin);
      if (dtype == DType::f32) {
        simd().binary(op, reinterpret_cast<const float*>(a), stride_a, reinterpret_cast<const float*>(b), stride_b,
                      reinterpret_cast<float*>(y), n);
        return;
      }
      float *fa = ws.at(args, worker, buffer_a), *fb = ws.at(args, worker, buffer_b);
      simd().load(dtype, a, fa, stride_a ? n : 1);
      simd().load(dtype, b, fb, stride_b ? n : 1);
      simd().binary(op, fa, stride_a, fb, stride_b, stride_a ? fa : fb, stride_a || stride_b ? n : 1);
      if (!stride_a && !stride_b) std::fill(fb, fb + n, fb[0]);
      simd().store(dtype, stride_a ? fa : fb, y, n);
    };
    args.pool.run((outer + rows - 1) / rows * parts, [&](int64_t task, int worker) {
      int64_t first = task / parts * rows, p = task % parts;
      for (int64_t row = first; row < std::min(outer, first + rows); ++row) part(row, p, worker);
    });
  };
  return step;
}

Step make_glu(const StepSpec& spec) {
  DType dtype = spec.output().dtype;
  int64_t half = spec.output().shape[-1], rows = spec.output().shape.numel() / half;
  Workspace ws;
  size_t value = ws.add(static_cast<size_t>(half) * 4), gate = ws.add(static_cast<size_t>(half) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    int64_t per_task = std::max<int64_t>(1, kBlock / half);
    args.pool.run((rows + per_task - 1) / per_task, [&](int64_t task, int worker) {
      float *v = ws.at(args, worker, value), *g = ws.at(args, worker, gate);
      auto n = static_cast<size_t>(half);
      for (int64_t row = task * per_task; row < std::min(rows, (task + 1) * per_task); ++row) {
        const std::byte* x = advance(args.in[0], dtype, row * 2 * half);
        simd().load(dtype, x, v, n);
        simd().load(dtype, advance(x, dtype, half), g, n);
        simd().unary(Unary::silu, g, g, n);
        simd().binary(Binary::mul, v, 1, g, 1, v, n);
        simd().store(dtype, v, advance(args.out, dtype, row * half), n);
      }
    });
  };
  return step;
}

}  // namespace kinora::cpu
