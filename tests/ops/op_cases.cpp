#include "ops/op_cases.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shaping.h"
#include "support.h"

namespace kinora::test {
namespace {

using In = std::span<const Value>;
using Tensors = std::span<const Tensor>;
using Doubles = std::vector<double>;

auto each(double (*f)(double)) {
  return [f](Tensors in) {
    Doubles out;
    for (float x : in[0].values<float>()) out.push_back(f(x));
    return out;
  };
}

// Both inputs of shape [2, 3, 4] and [3, 1]: the second is read with broadcasting.
auto pairwise(double (*f)(double, double)) {
  return [f](Tensors in) {
    Doubles out;
    for (int64_t i = 0; i < 24; ++i) out.push_back(f(in[0].data<float>()[i], in[1].data<float>()[i / 4 % 3]));
    return out;
  };
}

OpCase unary(std::string name, Value (*op)(Value), double (*truth)(double), float low = -1, float high = 1) {
  return {.name = std::move(name),
          .shapes = {{3, 37}},
          .build = [op](In x) { return op(x[0]); },
          .truth = each(truth),
          .low = low,
          .high = high};
}

OpCase binary(std::string name, Value (*op)(Value, Value), double (*truth)(double, double), float low = -1) {
  return {.name = std::move(name),
          .shapes = {{2, 3, 4}, {3, 1}},
          .build = [op](In x) { return op(x[0], x[1]); },
          .truth = pairwise(truth),
          .low = low};
}

// Truth of a moving op: result element i is input element source(i) (or zero when negative).
OpCase moving(std::string name, Shape shape, std::function<Value(In)> build, std::vector<int64_t> source) {
  auto truth = [source](Tensors in) {
    Doubles out;
    for (int64_t i : source) out.push_back(i < 0 ? 0 : in[0].data<float>()[i]);
    return out;
  };
  return {.name = std::move(name), .shapes = {shape}, .build = std::move(build), .truth = truth};
}

Doubles matmul_truth(Tensors in, int64_t items, int64_t m, int64_t n, int64_t k, bool ta, bool tb, bool shared) {
  Doubles out;
  for (int64_t b = 0; b < items; ++b) {
    const float *x = in[0].data<float>() + b * m * k, *y = in[1].data<float>() + (shared ? 0 : b * n * k);
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double total = 0;
        for (int64_t t = 0; t < k; ++t)
          total += double(ta ? x[t * m + i] : x[i * k + t]) * (tb ? y[j * k + t] : y[t * n + j]);
        out.push_back(total);
      }
    }
  }
  return out;
}

OpCase matmul_case(std::string name, int64_t items, int64_t m, int64_t n, int64_t k, bool ta, bool tb, bool shared) {
  Shape a = ta ? Shape{items, k, m} : Shape{items, m, k};
  Shape b = shared ? (tb ? Shape{n, k} : Shape{k, n}) : tb ? Shape{items, n, k} : Shape{items, k, n};
  return {.name = std::move(name),
          .shapes = {a, b},
          .build = [=](In x) { return matmul(x[0], x[1], ta, tb); },
          .terms = k,
          .truth = [=](Tensors in) { return matmul_truth(in, items, m, n, k, ta, tb, shared); }};
}

void add_elementwise(std::vector<OpCase>& c) {
  c.push_back(binary("add", add, [](double a, double b) { return a + b; }));
  c.push_back(binary("sub", sub, [](double a, double b) { return a - b; }));
  c.push_back(binary("mul", mul, [](double a, double b) { return a * b; }));
  c.push_back(binary(
      "div", div, [](double a, double b) { return a / b; }, 0.5f));
  c.push_back({.name = "affine",
               .shapes = {{5, 7}},
               .build = [](In x) { return affine(x[0], 2.5, -0.5); },
               .truth =
                   [](Tensors in) {
                     Doubles out;
                     for (float x : in[0].values<float>()) out.push_back(2.5 * x - 0.5);
                     return out;
                   }});
  c.push_back(unary(
      "exp", exp, [](double x) { return std::exp(x); }, -3, 3));
  c.push_back(unary(
      "log", log, [](double x) { return std::log(x); }, 0.25f, 3));
  c.push_back(unary(
      "sqrt", sqrt, [](double x) { return std::sqrt(x); }, 0.25f, 3));
  c.push_back(unary(
      "rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, 0.25f, 3));
  c.push_back(unary(
      "sin", sin, [](double x) { return std::sin(x); }, -3, 3));
  c.push_back(unary(
      "cos", cos, [](double x) { return std::cos(x); }, -3, 3));
  c.push_back(unary(
      "tanh", tanh, [](double x) { return std::tanh(x); }, -4, 4));
  c.push_back(unary(
      "erf", erf, [](double x) { return std::erf(x); }, -4.5f, 4.5f));
  c.push_back(unary(
      "sigmoid", sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, -8, 8));
  c.push_back(unary("relu", relu, [](double x) { return x > 0 ? x : 0; }));
  c.push_back(unary("step", step, [](double x) { return x > 0 ? 1.0 : 0.0; }));
  c.push_back({.name = "clamp",
               .shapes = {{4, 9}},
               .build = [](In x) { return clamp(x[0], -0.5, 0.25); },
               .truth = each([](double x) { return x < -0.5   ? -0.5
                                                   : x > 0.25 ? 0.25
                                                              : x; })});
  c.push_back({.name = "silu", .shapes = {{3, 40}}, .build = [](In x) { return silu(x[0]); }, .low = -6, .high = 6});
  c.push_back(
      {.name = "gelu_tanh", .shapes = {{3, 40}}, .build = [](In x) { return gelu_tanh(x[0]); }, .low = -4, .high = 4});
  c.push_back({.name = "gelu", .shapes = {{3, 40}}, .build = [](In x) { return gelu(x[0]); }, .low = -6, .high = 6});
  c.push_back({.name = "quick_gelu",
               .shapes = {{3, 40}},
               .build = [](In x) { return quick_gelu(x[0]); },
               .low = -6,
               .high = 6});
  c.push_back({.name = "cast",
               .shapes = {{3, 5}},
               .build = [](In x) { return cast(cast(x[0], DType::bf16), DType::f32); },
               .truth =
                   [](Tensors in) {
                     Doubles out;
                     for (float x : in[0].values<float>()) out.push_back(static_cast<float>(bf16(x)));
                     return out;
                   },
               .gradient = false});
  c.push_back({.name = "mul_add", .shapes = {{2, 1, 16}, {2, 3, 16}, {3, 16}}, .build = [](In x) {
                 return mul_add(x[0], x[1], x[2]);
               }});
  c.push_back({.name = "act_mul",
               .shapes = {{3, 40}, {3, 40}},
               .build = [](In x) { return act_mul(x[0], x[1], "gelu_tanh"); },
               .low = -3,
               .high = 3});
  c.push_back({.name = "act_mul/silu", .shapes = {{2, 3, 7}, {2, 3, 7}}, .build = [](In x) {
                 return act_mul(x[0], x[1], "silu");
               }});
  c.push_back({.name = "glu", .shapes = {{5, 24}}, .build = [](In x) { return glu(x[0]); }, .low = -3, .high = 3});
}

void add_shaping(std::vector<OpCase>& c) {
  c.push_back(moving("reshape", {2, 3}, [](In x) { return affine(reshape(x[0], {3, 2}), 1, 0); }, {0, 1, 2, 3, 4, 5}));
  c.push_back({.name = "part",
               .shapes = {{6, 8}},
               .build =
                   [](In x) {
                     int64_t offset = 16 * static_cast<int64_t>(dtype_size(x[0].dtype()));
                     return affine(part(affine(x[0], 2, 0), offset, {2, 5}, x[0].dtype()), 1, 0);
                   },
               .truth =
                   [](Tensors in) {
                     Doubles out;
                     for (int64_t i = 16; i < 26; ++i) out.push_back(2 * in[0].data<float>()[i]);
                     return out;
                   },
               .gradient = false});
  c.push_back(moving("permute", {2, 3}, [](In x) { return permute(x[0], {1, 0}); }, {0, 3, 1, 4, 2, 5}));
  c.push_back(moving("permute/three", {2, 2, 3},
                     [](In x) {
                       return permute(x[0], {1, 0, 2});
                     },
                     {0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11}));
  c.push_back(moving("slice", {2, 5}, [](In x) { return slice(x[0], 1, 1, 5, 2); }, {1, 3, 6, 8}));
  c.push_back(moving("concat", {2, 2},
                     [](In x) {
                       return concat({x[0], affine(x[0], 0, 0)}, 1);
                     },
                     {0, 1, -1, -1, 2, 3, -1, -1}));
  c.push_back(moving("broadcast", {2, 1},
                     [](In x) {
                       return broadcast_to(x[0], {2, 2, 3});
                     },
                     {0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1}));
  c.push_back(
      moving("pad", {2, 2}, [](In x) { return pad(x[0], 1, 1, 2, 1); }, {-1, 0, -1, 1, -1, -1, -1, 2, -1, 3, -1, -1}));
  c.push_back(moving("pad_edge", {2, 2},
                     [](In x) {
                       return pad_edge(x[0], {1, 0}, {0, 2});
                     },
                     {0, 1, 1, 1, 0, 1, 1, 1, 2, 3, 3, 3}));
  c.push_back({.name = "pad_edge/causal", .shapes = {{2, 3, 2, 4, 5}}, .build = [](In x) {
                 return pad_edge(x[0], {0, 2, 1, 1, 0}, {0, 0, 1, 1, 0});
               }});
  c.push_back(
      {.name = "interleave_phases", .shapes = {{2, 4, 3, 20}}, .build = [](In x) { return interleave_phases(x[0]); }});
  c.push_back({.name = "interleave_phases/packs", .shapes = {{1, 3, 5, 64}}, .build = [](In x) {
                 return interleave_phases(x[0]);
               }});
  c.push_back(
      {.name = "upsample_nearest2", .shapes = {{2, 3, 2, 5}}, .build = [](In x) { return upsample_nearest2(x[0]); }});
}

void add_reduce(std::vector<OpCase>& c) {
  c.push_back({.name = "sum",
               .shapes = {{3, 50}},
               .build = [](In x) { return sum(x[0], {1}); },
               .terms = 50,
               .truth =
                   [](Tensors in) {
                     Doubles out(3, 0);
                     for (int64_t i = 0; i < 150; ++i) out[static_cast<size_t>(i / 50)] += in[0].data<float>()[i];
                     return out;
                   }});
  c.push_back({.name = "sum/outer",
               .shapes = {{4, 3, 2}},
               .build =
                   [](In x) {
                     return sum(x[0], {0, 2});
                   },
               .terms = 8,
               .truth =
                   [](Tensors in) {
                     Doubles out(3, 0);
                     for (int64_t i = 0; i < 24; ++i) out[static_cast<size_t>(i / 2 % 3)] += in[0].data<float>()[i];
                     return out;
                   }});
  c.push_back({.name = "max",
               .shapes = {{3, 50}},
               .build = [](In x) { return max(x[0], {1}); },
               .truth =
                   [](Tensors in) {
                     Doubles out(3, -9);
                     for (int64_t i = 0; i < 150; ++i) {
                       double& best = out[static_cast<size_t>(i / 50)];
                       best = std::max<double>(best, in[0].data<float>()[i]);
                     }
                     return out;
                   },
               .gradient = false});
  c.push_back({.name = "softmax",
               .shapes = {{4, 33}},
               .build = [](In x) { return softmax(x[0]); },
               .terms = 33,
               .low = -5,
               .high = 5});
}

void add_matmul(std::vector<OpCase>& c) {
  c.push_back(matmul_case("matmul", 2, 5, 7, 6, false, false, false));
  c.push_back(matmul_case("matmul/ta", 2, 5, 7, 6, true, false, false));
  c.push_back(matmul_case("matmul/tb", 2, 5, 7, 6, false, true, false));
  c.push_back(matmul_case("matmul/ta_tb", 2, 5, 7, 6, true, true, false));
  c.push_back(matmul_case("matmul/shared", 3, 4, 5, 6, false, true, true));
  c.push_back(matmul_case("matmul/blocks", 1, 300, 140, 20, true, false, false));
  c.back().gradient = false;
  c.push_back({.name = "linear",
               .shapes = {{2, 12, 9}, {10, 9}, {10}},
               .build = [](In x) { return linear(x[0], x[1], x[2], "silu"); },
               .terms = 9});
  c.push_back({.name = "linear/few_rows",
               .shapes = {{3, 9}, {130, 9}, {130}},
               .build = [](In x) { return linear(x[0], x[1], x[2], "gelu_tanh"); },
               .terms = 9});
  for (const char* act : {"gelu", "quick_gelu"}) {
    c.push_back({.name = std::string("linear/") + act,
                 .shapes = {{3, 9}, {20, 9}, {20}},
                 .build = [act](In x) { return linear(x[0], x[1], x[2], act); },
                 .terms = 9});
  }
  c.push_back({.name = "linear/blocks",
               .shapes = {{2, 290, 33}, {200, 33}},
               .build = [](In x) { return linear(x[0], x[1]); },
               .terms = 33,
               .gradient = false});
  c.push_back({.name = "linear_add",
               .shapes = {{2, 12, 9}, {10, 9}, {10}, {2, 12, 10}, {2, 1, 10}},
               .build = [](In x) { return linear_add(x[0], x[1], x[2], x[3], x[4]); },
               .terms = 9});
  c.push_back({.name = "linear_add/few_rows",
               .shapes = {{3, 9}, {130, 9}, {3, 130}, {3, 130}},
               .build = [](In x) { return linear_add(x[0], x[1], {}, x[2], x[3]); },
               .terms = 9});
  c.push_back({.name = "linear_add/blocks",
               .shapes = {{2, 290, 33}, {200, 33}, {200}, {2, 290, 200}},
               .build = [](In x) { return linear_add(x[0], x[1], x[2], affine(x[3], 0.5, 0)); },
               .terms = 33,
               .gradient = false});
  c.push_back({.name = "gather",
               .shapes = {{5, 4}, {2, 3}},
               .build = [](In x) { return gather(x[0], x[1]); },
               .truth =
                   [](Tensors in) {
                     Doubles out;
                     for (int32_t id : in[1].values<int32_t>()) {
                       for (int64_t i = 0; i < 4; ++i) out.push_back(in[0].data<float>()[id * 4 + i]);
                     }
                     return out;
                   },
               .ids = {4, 0, 0, 2, 1, 4}});
  c.push_back({.name = "scatter_rows",
               .shapes = {{4, 3}, {4}},
               .build = [](In x) { return scatter_rows(x[0], x[1], 5); },
               .truth =
                   [](Tensors in) {
                     Doubles out(15, 0);
                     for (int64_t i = 0; i < 12; ++i) {
                       out[static_cast<size_t>(in[1].data<int32_t>()[i / 3] * 3 + i % 3)] += in[0].data<float>()[i];
                     }
                     return out;
                   },
               .ids = {3, 1, 3, 0}});
}

void add_conv(std::vector<OpCase>& c) {
  auto conv = [&](std::string name, Shape x, Shape w, Conv2dOptions o, bool gradient = true) {
    c.push_back({.name = std::move(name),
                 .shapes = {x, w, {w[0]}},
                 .build = [o](In in) { return conv2d(in[0], in[1], in[2], o); },
                 .terms = w.product(1, 4),
                 .gradient = gradient});
  };
  conv("conv2d", {2, 5, 4, 3}, {6, 3, 3, 3}, {.padding = 1});
  conv("conv2d/stride", {1, 6, 5, 4}, {5, 4, 3, 3}, {.stride = 2, .padding = 1, .act = "silu"});
  conv("conv2d/depthwise", {2, 5, 4, 20}, {20, 1, 3, 3}, {.padding = 1, .groups = 20});
  conv("conv2d/depthwise5", {1, 7, 6, 3}, {3, 1, 5, 5}, {.padding = 2, .groups = 3, .act = "relu"});
  conv("conv2d/depthwise5_wide", {1, 7, 11, 37}, {37, 1, 5, 5}, {.padding = 2, .groups = 37}, false);
  conv("conv2d/depthwise_stride_wide", {1, 7, 9, 18}, {18, 1, 3, 3}, {.stride = 2, .padding = 1, .groups = 18}, false);
  conv("conv2d/grouped", {1, 3, 4, 8}, {8, 4, 1, 1}, {.groups = 2});
  conv("conv2d/grouped3x3", {1, 4, 4, 4}, {6, 2, 3, 3}, {.padding = 1, .groups = 2});
  conv("conv2d/depthwise7", {2, 9, 11, 6}, {6, 1, 7, 7}, {.padding = 3, .groups = 6, .act = "gelu_tanh"}, false);
  conv("conv2d/depthwise_stride", {2, 7, 8, 5}, {5, 1, 3, 3}, {.stride = 2, .padding = 1, .groups = 5}, false);
  conv("conv2d/depthwise_unpadded", {1, 6, 9, 4}, {4, 1, 5, 5}, {.groups = 4, .act = "silu"}, false);
  conv("conv2d/depthwise_wide", {2, 19, 37, 70}, {70, 1, 5, 5}, {.padding = 2, .groups = 70}, false);
  conv("conv2d/grouped32", {3, 7, 5, 96}, {96, 32, 1, 1}, {.groups = 3, .act = "silu"}, false);
  conv("conv2d/grouped_widening", {2, 3, 5, 6}, {9, 2, 1, 1}, {.groups = 3}, false);
  conv("conv2d/tall", {3, 17, 3, 8}, {24, 8, 3, 3}, {.padding = 1, .act = "gelu_tanh"}, false);
  auto last = [&](std::string name, Shape x, Shape w, Conv2dOptions o, bool gradient = true) {
    o.weight_layout = "ohwi";
    conv(std::move(name), x, w, o, gradient);
  };
  last("conv2d/ohwi", {2, 5, 4, 3}, {6, 3, 3, 3}, {.padding = 1, .act = "silu"});
  last("conv2d/ohwi_stride", {2, 9, 7, 16}, {8, 3, 3, 16}, {.stride = 2, .padding = 1, .act = "relu"}, false);
  last("conv2d/ohwi_batch", {4, 8, 8, 32}, {40, 3, 3, 32}, {.padding = 1}, false);
  last("conv2d/ohwi_grouped", {1, 4, 4, 4}, {6, 3, 3, 2}, {.padding = 1, .groups = 2}, false);
  conv("conv2d/blocks", {1, 70, 40, 16}, {150, 16, 3, 3}, {.padding = 1}, false);
  auto glu3 = [&](std::string name, Shape x, std::string act, bool gradient) {
    c.push_back({.name = std::move(name),
                 .shapes = {x, {x[3], 1, 3, 3}, {x[3]}},
                 .build = [act](In in) { return depthwise_glu(in[0], in[1], in[2], act); },
                 .terms = 9,
                 .gradient = gradient});
  };
  glu3("depthwise_glu", {2, 5, 4, 12}, "silu", true);
  glu3("depthwise_glu/plain", {1, 3, 6, 10}, "none", true);
  glu3("depthwise_glu/one", {3, 1, 1, 4}, "silu", false);
  glu3("depthwise_glu/odd", {2, 13, 19, 6}, "silu", false);
  glu3("depthwise_glu/tall", {1, 41, 9, 132}, "silu", false);
  c.push_back({.name = "depthwise_glu/no_bias",
               .shapes = {{1, 18, 8, 64}, {64, 1, 3, 3}},
               .build = [](In in) { return depthwise_glu(in[0], in[1], {}, "relu"); },
               .terms = 9,
               .gradient = false});
  conv("conv2d/depthwise_blocks", {1, 50, 70, 80}, {80, 1, 3, 3}, {.padding = 1, .groups = 80}, false);
  c.push_back({.name = "depthwise_glu/larger",
               .shapes = {{1, 6, 7, 10}, {10, 1, 5, 5}, {10}},
               .build = [](In x) { return depthwise_glu(x[0], x[1], x[2]); },
               .terms = 25});
  c.push_back({.name = "depthwise_glu/wide",
               .shapes = {{1, 9, 13, 70}, {70, 1, 3, 3}},
               .build = [](In x) { return depthwise_glu(x[0], x[1], {}); },
               .terms = 9,
               .gradient = false});
  auto film = [&](std::string name, Shape x, Shape w, Conv3dOptions o, bool gradient = true) {
    c.push_back({.name = std::move(name),
                 .shapes = {x, w, {w[0]}},
                 .build = [o](In in) { return conv3d(in[0], in[1], in[2], o); },
                 .terms = w.product(1, 5),
                 .gradient = gradient});
  };
  film("conv3d", {2, 4, 5, 4, 3}, {6, 3, 3, 3, 3}, {.padding = {1, 1, 1}});
  film("conv3d/valid", {1, 5, 5, 6, 3}, {4, 3, 3, 3, 3}, {.act = "silu"});
  film("conv3d/stride", {1, 5, 6, 5, 4}, {5, 4, 3, 3, 3}, {.stride = {2, 2, 2}, .padding = {1, 1, 1}, .act = "silu"});
  film("conv3d/stride_plane", {1, 3, 6, 6, 4}, {5, 4, 3, 3, 3}, {.stride = {1, 2, 2}, .padding = {1, 1, 1}});
  film("conv3d/unequal", {1, 3, 6, 9, 2}, {3, 2, 2, 3, 5}, {.stride = {1, 2, 3}, .padding = {1, 0, 2}});
  film("conv3d/pointwise", {1, 3, 4, 4, 6}, {5, 6, 1, 1, 1}, {});
  film("conv3d/depthwise", {2, 3, 5, 4, 20}, {20, 1, 3, 3, 3}, {.padding = {1, 1, 1}, .groups = 20});
  film("conv3d/depthwise5", {1, 4, 7, 6, 3}, {3, 1, 5, 5, 5}, {.padding = {2, 2, 2}, .groups = 3, .act = "gelu_tanh"});
  film("conv3d/grouped", {1, 2, 3, 4, 8}, {8, 4, 1, 1, 1}, {.groups = 2});
  film("conv3d/blocks", {1, 3, 70, 40, 16}, {150, 16, 3, 3, 3}, {.padding = {1, 1, 1}}, false);
  film("conv3d/depthwise_blocks", {1, 3, 50, 70, 80}, {80, 1, 3, 3, 3}, {.padding = {1, 1, 1}, .groups = 80}, false);
}

void add_norm_attention(std::vector<OpCase>& c) {
  c.push_back({.name = "layer_norm",
               .shapes = {{2, 3, 21}},
               .build = [](In x) { return layer_norm(x[0], 1e-6); },
               .terms = 21});
  c.push_back({.name = "layer_norm/modulated",
               .shapes = {{2, 3, 18}, {2, 1, 18}, {1, 1, 18}},
               .build = [](In x) { return layer_norm(x[0], 1e-6, x[1], x[2]); },
               .terms = 18});
  c.push_back({.name = "rms_norm",
               .shapes = {{4, 19}, {19}, {19}},
               .build = [](In x) { return rms_norm(x[0], x[1], x[2], 1e-5); },
               .terms = 19});
  c.push_back({.name = "rms_norm/gemma",
               .shapes = {{2, 2, 16}, {16}},
               .build = [](In x) { return rms_norm(x[0], x[1], {}, 1e-6, 1); },
               .terms = 16});
  c.push_back({.name = "group_norm",
               .shapes = {{2, 3, 2, 4, 12}, {12}, {12}},
               .build = [](In x) { return group_norm(x[0], x[1], x[2], 3, 1e-6, "silu"); },
               .terms = 96});
  c.push_back({.name = "group_norm/blocks",
               .shapes = {{2, 5000, 40}, {40}, {40}},
               .build = [](In x) { return group_norm(affine(x[0], 1, 3), x[1], x[2], 4, 1e-6); },
               .terms = 50000,
               .gradient = false});
  c.push_back({.name = "rms_norm_add",
               .shapes = {{4, 19}, {4, 19}, {19}, {19}},
               .build = [](In x) { return rms_norm_add(x[0], x[1], x[2], x[3], 1e-5); },
               .terms = 19});
  c.push_back({.name = "attention",
               .shapes = {{2, 5, 2, 4}, {2, 7, 2, 4}, {2, 7, 2, 4}, {2, 7}},
               .build = [](In x) { return attention(x[0], x[1], x[2], x[3], {.scale = 0.5}); },
               .terms = 7});
  for (const Shape& bias :
       {Shape{1, 4, 5, 7}, Shape{2, 1, 5, 7}, Shape{2, 4, 1, 7}, Shape{2, 4, 5, 7}, Shape{1, 1, 1, 7}}) {
    c.push_back({.name = "attention/bias" + std::to_string(bias[0]) + std::to_string(bias[1]) + std::to_string(bias[2]),
                 .shapes = {{2, 5, 4, 4}, {2, 7, 2, 4}, {2, 7, 2, 4}, bias},
                 .build = [](In x) { return attention(x[0], x[1], x[2], x[3], {.scale = 0.5, .softcap = 2}); },
                 .terms = 7});
  }
  c.push_back({.name = "attention/bias_blocks",
               .shapes = {{1, 150, 2, 8}, {1, 90, 2, 8}, {1, 90, 2, 8}, {1, 2, 150, 90}},
               .build = [](In x) { return attention(x[0], x[1], x[2], x[3], {.causal = true}); },
               .terms = 90,
               .gradient = false});
  c.push_back({.name = "attention/gemma",
               .shapes = {{1, 6, 4, 4}, {1, 6, 2, 4}, {1, 6, 2, 4}},
               .build =
                   [](In x) {
                     return attention(x[0], x[1], x[2], {}, {.scale = 2, .softcap = 1.5, .causal = true, .window = 3});
                   },
               .terms = 6});
  c.push_back({.name = "attention/causal_blocks",
               .shapes = {{2, 7, 1, 4}, {2, 7, 1, 4}, {2, 7, 1, 4}},
               .build = [](In x) { return attention(x[0], x[1], x[2], {}, {.scale = 2, .causal = true, .block = 3}); },
               .terms = 7});
  c.push_back({.name = "attention/causal_blocks_bias",
               .shapes = {{1, 7, 1, 4}, {1, 7, 1, 4}, {1, 7, 1, 4}, {1, 7}},
               .build = [](In x) { return attention(x[0], x[1], x[2], x[3], {.causal = true, .block = 3}); },
               .terms = 7});
  c.push_back(
      {.name = "attention/causal_tiles",
       .shapes = {{1, 2700, 1, 8}, {1, 2700, 1, 8}, {1, 2700, 1, 8}},
       .build = [](In x) { return attention(x[0], x[1], x[2], {}, {.scale = 2, .causal = true, .block = 300}); },
       .terms = 2700,
       .gradient = false});
  c.push_back({.name = "attention/blocks",
               .shapes = {{1, 150, 2, 32}, {1, 90, 2, 32}, {1, 90, 2, 32}},
               .build = [](In x) { return attention(x[0], x[1], x[2], {}, {.scale = 0.18}); },
               .terms = 90,
               .gradient = false});
  c.push_back({.name = "linear_attention",
               .shapes = {{2, 6, 2, 5}, {2, 6, 2, 5}, {2, 6, 2, 5}},
               .build = [](In x) { return linear_attention(affine(x[0], 1, 0.4), affine(x[1], 1, 0.4), x[2]); },
               .terms = 30});
  c.push_back({.name = "linear_attention/blocks",
               .shapes = {{1, 1100, 2, 32}, {1, 1100, 2, 32}, {1, 1100, 2, 32}},
               .build = [](In x) { return linear_attention(x[0], x[1], x[2]); },
               .terms = 1100,
               .gradient = false});
  c.push_back({.name = "rope",
               .shapes = {{2, 3, 2, 6}, {3, 6}, {3, 6}},
               .build = [](In x) { return rope(x[0], x[1], x[2]); },
               .terms = 2});
  c.push_back({.name = "rope/interleaved",
               .shapes = {{2, 3, 2, 6}, {3, 6}, {3, 6}},
               .build = [](In x) { return rope(x[0], x[1], x[2], true); },
               .terms = 2,
               .truth =
                   [](Tensors in) {
                     Doubles out;
                     for (int64_t i = 0; i < 72; ++i) {
                       int64_t at = i / 12 % 3 * 6 + i % 6;  // in the tables: heads and batch share them
                       double partner = in[0].data<float>()[i ^ 1], sign = i % 2 ? 1 : -1;
                       out.push_back(double(in[0].data<float>()[i]) * in[1].data<float>()[at] +
                                     sign * partner * in[2].data<float>()[at]);
                     }
                     return out;
                   }});
}

// Sizes that are no multiples of any tile, and inputs that are slices of one projection.
void add_attention_sizes(std::vector<OpCase>& c) {
  auto attend = [&](std::string name, Shape q, Shape k, AttentionOptions o, bool biased = false) {
    OpCase item{.name = "attention/" + name,
                .shapes = {q, k, k},
                .build = [=](In x) { return attention(x[0], x[1], x[2], biased ? x[3] : Value(), o); },
                .terms = k[1],
                .gradient = false};
    if (biased) item.shapes.push_back({k[0], k[1]});
    c.push_back(std::move(item));
  };
  attend("one", {1, 1, 1, 8}, {1, 1, 1, 8}, {.scale = 0.3});
  attend("odd", {3, 7, 3, 5}, {3, 67, 1, 5}, {.scale = 0.4}, true);
  attend("dim64", {2, 131, 2, 64}, {2, 131, 1, 64}, {.scale = 0.125, .causal = true});
  attend("dim72", {2, 130, 2, 72}, {2, 75, 2, 72}, {.scale = 0.12}, true);
  attend("dim96", {1, 17, 1, 96}, {1, 33, 1, 96}, {.scale = -0.1});
  attend("dim112", {1, 65, 1, 112}, {1, 129, 1, 112}, {.scale = 0.1});
  attend("dim128", {1, 140, 2, 128}, {1, 140, 1, 128}, {.scale = 0.09, .causal = true, .window = 70});
  attend("dim160", {1, 9, 1, 160}, {1, 40, 1, 160}, {.scale = 0.08});
  attend("dim256", {1, 70, 2, 256}, {1, 70, 1, 256}, {.scale = 0.06, .softcap = 2, .causal = true}, true);
  attend("unseen", {1, 90, 1, 16}, {1, 40, 1, 16}, {.scale = 0.25, .causal = true, .window = 20});
  c.push_back(
      {.name = "attention/masked",
       .shapes = {{2, 6, 2, 32}, {2, 70, 2, 32}, {2, 70, 2, 32}, {2, 70}},
       .build = [](In x) { return attention(x[0], x[1], x[2], affine(step(x[3]), 1e30, -1e30), {.causal = true}); },
       .terms = 70,
       .gradient = false});
  c.push_back({.name = "attention/qkv",
               .shapes = {{2, 40, 480}},
               .build =
                   [](In x) {
                     std::vector<Value> qkv = split(reshape(x[0], {2, 40, 6, 80}), 2, 3);
                     return attention(qkv[0], qkv[1], qkv[2], {}, {.scale = 0.11});
                   },
               .terms = 40,
               .gradient = false});
}

void add_linear_attention_sizes(std::vector<OpCase>& c) {
  auto attend = [&](std::string name, Shape x, float low = -1) {
    c.push_back({.name = "linear_attention/" + name,
                 .shapes = {x, x, x},
                 .build = [](In in) { return linear_attention(in[0], in[1], in[2]); },
                 .terms = x[1],
                 .low = low,
                 .gradient = false});
  };
  attend("one", {1, 1, 1, 32}, 0.1f);
  attend("tokens", {3, 150, 5, 32});
  attend("dim1", {2, 20, 3, 1}, 0.1f);
  attend("dim33", {1, 90, 2, 33});
  attend("dim128", {1, 50, 2, 128});
  c.push_back({.name = "linear_attention/qkv",
               .shapes = {{2, 100, 288}},
               .build =
                   [](In x) {
                     std::vector<Value> qkv = split(reshape(x[0], {2, 100, 9, 32}), 2, 3);
                     return linear_attention(qkv[0], qkv[1], qkv[2]);
                   },
               .terms = 100,
               .gradient = false});
  c.push_back({.name = "linear_attention/by_head",
               .shapes = {{2, 100, 3, 96}},
               .build =
                   [](In x) {
                     std::vector<Value> qkv = split(x[0], 3, 3);
                     return linear_attention(qkv[0], qkv[1], qkv[2]);
                   },
               .terms = 100,
               .gradient = false});
  auto rotate = [&](std::string name, Shape x) {
    c.push_back({.name = "rope/" + name,
                 .shapes = {x, {x[1], x[3]}, {x[1], x[3]}},
                 .build = [](In in) { return rope(in[0], in[1], in[2]); },
                 .terms = 2,
                 .gradient = false});
  };
  rotate("dim32", {2, 5, 6, 32});
  rotate("dim256", {1, 40, 9, 256});
  rotate("dim40", {3, 7, 1, 40});
  c.push_back({.name = "rope/slice",
               .shapes = {{2, 7, 9, 64}, {7, 64}, {7, 64}},
               .build = [](In x) { return rope(slice(x[0], 2, 3, 8), x[1], x[2]); },
               .terms = 2,
               .gradient = false});
}

}  // namespace

const std::vector<OpCase>& op_cases() {
  static const std::vector<OpCase> cases = [] {
    std::vector<OpCase> c;
    add_elementwise(c);
    add_shaping(c);
    add_reduce(c);
    add_matmul(c);
    add_conv(c);
    add_norm_attention(c);
    add_attention_sizes(c);
    add_linear_attention_sizes(c);
    add_quantized(c);
    add_quantized_rows(c);
    return c;
  }();
  return cases;
}

Feed make_inputs(const OpCase& c) {
  Feed feed;
  for (size_t i = 0; i < c.shapes.size(); ++i) {
    feed["x" + std::to_string(i)] = random_tensor(c.shapes[i], 17 + i, c.low, c.high);
  }
  if (!c.ids.empty()) {
    std::vector<int32_t> ids(c.ids.begin(), c.ids.end());
    feed["x" + std::to_string(c.shapes.size() - 1)] = Tensor::from(c.shapes.back(), ids);
  }
  return feed;
}

std::vector<Value> add_inputs(Graph& graph, const OpCase& c, DType dtype) {
  std::vector<Value> inputs;
  for (size_t i = 0; i < c.shapes.size(); ++i) {
    bool ids = !c.ids.empty() && i + 1 == c.shapes.size();
    Value input = graph.input("x" + std::to_string(i), c.shapes[i], ids ? DType::i32 : DType::f32);
    inputs.push_back(ids ? input : cast(input, dtype));
  }
  return inputs;
}

Graph build(const OpCase& c, DType dtype) {
  Graph graph;
  graph.output("y", cast(c.build(add_inputs(graph, c, dtype)), DType::f32));
  return graph;
}

}  // namespace kinora::test
