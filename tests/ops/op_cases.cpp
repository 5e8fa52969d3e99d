#include "ops/op_cases.h"

#include <cmath>

#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
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
  c.push_back({.name = "pad_edge/packs", .shapes = {{3, 2, 5, 32}}, .build = [](In x) {
                 return pad_edge(x[0], {0, 3, 1, 0}, {0, 0, 2, 0});
               }});
  c.push_back({.name = "pad_edge/slice", .shapes = {{2, 4, 3, 3, 48}}, .build = [](In x) {
                 return pad_edge(slice(slice(x[0], 1, 1, 3), 4, 16, 32), {0, 1, 1, 1, 0}, {0, 0, 1, 1, 0});
               }});
  c.push_back({.name = "pad_edge/channels", .shapes = {{1, 3, 8}}, .build = [](In x) {
                 return pad_edge(x[0], {0, 0, 8}, {0, 0, 16});
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
  // One row for each item of a batch.
  for (int64_t batch : {1, 2, 3, 9}) {
    c.push_back({.name = "linear/items" + std::to_string(batch),
                 .shapes = {{batch, 1, 200}, {37, 200}, {37}},
                 .build = [](In x) { return linear(x[0], x[1], x[2], "silu"); },
                 .terms = 200,
                 .gradient = false});
  }
  c.push_back({.name = "linear/item_odd",
               .shapes = {{2, 33}, {9, 33}},
               .build = [](In x) { return linear(x[0], x[1]); },
               .terms = 33,
               .gradient = false});
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
  c.push_back({.name = "linear_add/wider_stream",
               .shapes = {{2, 9, 40}, {24, 40}, {2, 9, 24}},
               .build =
                   [](In x) {
                     return linear_add(cast(x[0], DType::bf16), cast(x[1], DType::bf16), {}, cast(x[2], DType::f32));
                   },
               .terms = 40,
               .gradient = false});
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

}  // namespace

const std::vector<OpCase>& op_cases() {
  static const std::vector<OpCase> cases = [] {
    std::vector<OpCase> c;
    add_elementwise(c);
    add_shaping(c);
    add_reduce(c);
    add_matmul(c);
    add_conv_cases(c);
    add_norm_attention_cases(c);
    add_quantized(c);
    add_quantized_rows(c);
    return c;
  }();
  return cases;
}

bool has_bias(const OpCase& c) {
  return c.name.starts_with("attention") && c.shapes.size() - (c.ids.empty() ? 0 : 1) == 4;
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
