// Times single steps of the models at full size on the GPU: bench_steps [NAME…], microseconds and the bandwidth that
// reading each input once and writing the output once would need; --glu and --codes [NAME…] compare forms of one step.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>

#include "core/rng.h"
#include "cuda/backend.h"
#include "cuda/codes_product.h"
#include "cuda/kernels.h"
#include "diffusion/backends.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/fuse_quantized.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/quantize.h"
#include "ops/shaping.h"

using namespace kinora;

namespace {

struct Case {
  const char* name;
  std::vector<Shape> shapes;
  std::function<Value(std::span<const Value>)> build;
};

std::vector<Value> heads(Value qkv, int parts, int64_t count) {
  std::vector<Value> result;
  for (Value part : split(qkv, 2, parts)) {
    const Shape& s = part.shape();
    result.push_back(reshape(part, {s[0], s[1], count, s[2] / count}));
  }
  return result;
}

// Without lengths, with a bias of zeros.
Value cross_attention(Value q, Value kv, int64_t count, const std::vector<int32_t>& lengths = {}) {
  const Shape& s = q.shape();
  int64_t d = s[2];
  auto part = [&](int64_t at) {
    Value x = slice(kv, 2, at * d, (at + 1) * d);
    return reshape(x, {s[0], x.shape()[1], count, d / count});
  };
  Value x = reshape(q, {s[0], s[1], count, d / count}), bias, keys;
  if (lengths.empty()) {
    bias = q.graph().constant(Tensor::zeros({s[0], kv.shape()[1]}));
  } else {
    keys = q.graph().constant(Tensor::from({s[0]}, lengths));
  }
  return attention(x, part(2), part(3), bias, {.scale = 0.1}, keys);
}

// A gate, what it weighs, the stream, a scale and a shift.
std::vector<Shape> gate_norm_shapes(int64_t batch, int64_t tokens, int64_t width) {
  Shape x{batch, tokens, width}, one{batch, 1, width};
  return {one, x, x, one, one};
}
Value gate_norm(std::span<const Value> x) { return mul_add_norm(x[0], x[1], x[2], 1e-6, x[3], x[4]); }
Value gate_norm_rows(std::span<const Value> x) {
  return mul_add_rows(x[0], x[1], x[2], QuantFormat::fp8, RowNorm{1e-6, x[3], x[4]});
}
Value gate_rows(std::span<const Value> x) { return mul_add_rows(x[0], x[1], x[2], QuantFormat::fp8); }
Value norm_rows(std::span<const Value> x) { return layer_norm_rows(x[2], QuantFormat::fp8, 1e-6, x[3], x[4]); }
Value rows(std::span<const Value> x) { return quantize_rows(x[0], QuantFormat::fp8); }

// Weights of zeros, 1.0 and 0.56 bytes each.
Value modulation(Value x, QuantFormat format) {
  Graph& graph = x.graph();
  constexpr int64_t kRows = 18432;
  auto zeros = [&](const char* name, const Shape& shape, DType dtype) {
    return graph.parameter(name, Tensor::zeros(shape, dtype));
  };
  bool blocks = format == QuantFormat::nvfp4;
  Shape shape{kRows, x.shape()[-1]};
  QuantizedWeight weight{format,
                         zeros("codes", blocks ? Shape{kRows, shape[1] / 2} : shape, code_type(format)),
                         zeros("scale", scale_shape(format, shape), scale_type(format)),
                         {}};
  if (blocks) weight.scale_2 = zeros("scale_2", {}, DType::f32);
  return quantized_linear(x, weight, {.bias = zeros("bias", {kRows}, DType::bf16)});
}

// Gemma-2 2B's; the tokens from `tokens` on are padding.
Value gemma_attention(Value qkv, int64_t tokens) {
  const Shape s = qkv.shape();
  auto part = [&](int64_t at, int64_t count) {
    return reshape(slice(qkv, 2, at, at + count * 256), {s[0], s[1], count, 256});
  };
  std::vector<float> hidden(static_cast<size_t>(s[1]), 0);
  std::fill(hidden.begin() + tokens, hidden.end(), -1e30f);
  Value bias = broadcast_to(qkv.graph().constant(Tensor::from({1, s[1]}, hidden)), {s[0], s[1]});
  return attention(part(0, 8), part(2048, 4), part(3072, 4), bias, {.scale = 0.06, .softcap = 50, .causal = true});
}

std::vector<Case> cases() {
  using In = std::span<const Value>;
  return {
      {"glu-1.6b",
       {{2, 32, 32, 11200}, {11200, 1, 3, 3}, {11200}},
       [](In x) { return depthwise_glu(x[0], x[1], x[2], "silu"); }},
      {"glu-1.6b-4k",
       {{2, 128, 128, 11200}, {11200, 1, 3, 3}, {11200}},
       [](In x) { return depthwise_glu(x[0], x[1], x[2], "silu"); }},
      {"glu-0.6b",
       {{2, 32, 32, 5760}, {5760, 1, 3, 3}, {5760}},
       [](In x) { return depthwise_glu(x[0], x[1], x[2], "silu"); }},
      {"glu-dcae",
       {{1, 128, 128, 4096}, {4096, 1, 3, 3}, {4096}},
       [](In x) { return depthwise_glu(x[0], x[1], x[2], "silu"); }},
      {"cross-1.6b", {{2, 1024, 2240}, {2, 300, 31360}}, [](In x) { return cross_attention(x[0], x[1], 20); }},
      {"cross-1.6b-4k", {{2, 16384, 2240}, {2, 300, 31360}}, [](In x) { return cross_attention(x[0], x[1], 20); }},
      {"cross-0.6b", {{2, 1024, 1152}, {2, 300, 32256}}, [](In x) { return cross_attention(x[0], x[1], 16); }},
      {"cross-1.6b-all",
       {{2, 1024, 2240}, {2, 300, 31360}},
       [](In x) {
         return cross_attention(x[0], x[1], 20, {300, 300});
       }},
      {"cross-1.6b-short",
       {{2, 1024, 2240}, {2, 300, 31360}},
       [](In x) {
         return cross_attention(x[0], x[1], 20, {1, 40});
       }},
      {"cross-1.6b-4k-all",
       {{2, 16384, 2240}, {2, 300, 31360}},
       [](In x) {
         return cross_attention(x[0], x[1], 20, {300, 300});
       }},
      {"cross-1.6b-4k-short",
       {{2, 16384, 2240}, {2, 300, 31360}},
       [](In x) {
         return cross_attention(x[0], x[1], 20, {1, 40});
       }},
      {"cross-0.6b-all",
       {{2, 1024, 1152}, {2, 300, 32256}},
       [](In x) {
         return cross_attention(x[0], x[1], 16, {300, 300});
       }},
      {"cross-0.6b-short",
       {{2, 1024, 1152}, {2, 300, 32256}},
       [](In x) {
         return cross_attention(x[0], x[1], 16, {1, 40});
       }},
      {"linear-1.6b",
       {{2, 1024, 6720}},
       [](In x) {
         auto h = heads(x[0], 3, 70);
         return linear_attention(h[0], h[1], h[2]);
       }},
      {"linear-1.6b-4k",
       {{2, 16384, 6720}},
       [](In x) {
         auto h = heads(x[0], 3, 70);
         return linear_attention(h[0], h[1], h[2]);
       }},
      {"linear-0.6b",
       {{2, 1024, 3456}},
       [](In x) {
         auto h = heads(x[0], 3, 36);
         return linear_attention(h[0], h[1], h[2]);
       }},
      {"linear-dcae",
       {{1, 16384, 32, 96}},
       [](In x) {
         auto p = split(x[0], 3, 3);
         return linear_attention(p[0], p[1], p[2]);
       }},
      {"norm-1.6b",
       {{2, 1024, 2240}, {2, 1, 2240}, {2, 1, 2240}},
       [](In x) { return layer_norm(x[0], 1e-6, x[1], x[2]); }},
      {"gate-norm-1.6b", gate_norm_shapes(2, 1024, 2240), gate_norm},
      {"gate-norm-1.6b-4k", gate_norm_shapes(2, 16384, 2240), gate_norm},
      {"gate-norm-0.6b", gate_norm_shapes(2, 1024, 1152), gate_norm},
      {"gate-norm-mmdit", gate_norm_shapes(1, 8828, 3072), gate_norm},
      {"gate-norm-rows-1.6b", gate_norm_shapes(2, 1024, 2240), gate_norm_rows},
      {"gate-norm-rows-mmdit", gate_norm_shapes(1, 8828, 3072), gate_norm_rows},
      {"gate-rows-1.6b", gate_norm_shapes(2, 1024, 2240), gate_rows},
      {"norm-rows-1.6b", gate_norm_shapes(2, 1024, 2240), norm_rows},
      {"rows-1.6b", {{2, 1024, 2240}}, rows},
      {"rows-1.6b-glu", {{2, 1024, 5600}}, rows},
      {"rows-mmdit-mlp", {{1, 8316, 12288}}, rows},
      {"rows-mmdit-both", {{1, 8828, 15360}}, rows},
      {"norm-1.6b-4k",
       {{2, 16384, 2240}, {2, 1, 2240}, {2, 1, 2240}},
       [](In x) { return layer_norm(x[0], 1e-6, x[1], x[2]); }},
      {"gate-1.6b-4k",
       {{2, 1, 2240}, {2, 16384, 2240}, {2, 16384, 2240}},
       [](In x) { return mul_add(x[0], x[1], x[2]); }},
      {"gate-1.6b", {{2, 1, 2240}, {2, 1024, 2240}, {2, 1024, 2240}}, [](In x) { return mul_add(x[0], x[1], x[2]); }},
      {"rms-add-dcae",
       {{1, 1024, 1024, 128}, {1, 1024, 1024, 128}, {128}, {128}},
       [](In x) { return rms_norm_add(x[0], x[1], x[2], x[3], 1e-5); }},
      {"relu-dcae", {{1, 1024, 1024, 128}}, [](In x) { return relu(x[0]); }},
      {"rms-relu-dcae",
       {{1, 1024, 1024, 128}, {128}, {128}},
       [](In x) { return relu(rms_norm(x[0], x[1], x[2], 1e-5)); }},
      {"add-dcae", {{1, 1024, 1024, 128}, {1, 1024, 1024, 128}}, [](In x) { return x[0] + x[1]; }},
      {"depthwise5-dcae",
       {{1, 128, 128, 1536}, {1536, 1, 5, 5}},
       [](In x) { return conv2d(x[0], x[1], {}, {.padding = 2, .groups = 1536}); }},
      {"grouped-dcae",
       {{1, 128, 128, 1536}, {1536, 32, 1, 1}},
       [](In x) { return conv2d(x[0], x[1], {}, {.groups = 48}); }},
      {"multiscale-dcae",
       {{1, 128, 128, 512}, {1536, 512}, {1536, 1, 5, 5}, {1536, 32, 1, 1}},
       [](In x) {
         Value y = linear(x[0], x[1]), z = conv2d(y, x[2], {}, {.padding = 2, .groups = 1536});
         return concat({y, conv2d(z, x[3], {}, {.groups = 48})}, 3);
       }},
      {"conv-128",
       {{1, 1024, 1024, 128}, {128, 128, 3, 3}},
       [](In x) { return conv2d(x[0], x[1], {}, {.padding = 1}); }},
      {"conv-256", {{1, 512, 512, 256}, {256, 256, 3, 3}}, [](In x) { return conv2d(x[0], x[1], {}, {.padding = 1}); }},
      {"conv-512", {{1, 256, 256, 512}, {512, 512, 3, 3}}, [](In x) { return conv2d(x[0], x[1], {}, {.padding = 1}); }},
      {"conv-128-3",
       {{1, 1024, 1024, 128}, {3, 128, 3, 3}, {3}},
       [](In x) { return conv2d(x[0], x[1], x[2], {.padding = 1}); }},
      {"up-256-128",
       {{1, 512, 512, 256}, {128, 256, 3, 3}, {128}},
       [](In x) { return conv2d(upsample_nearest2(x[0]), x[1], x[2], {.padding = 1}); }},
      {"phases-dcae", {{1, 513, 513, 512}, {1, 512, 512, 256}}, [](In x) { return interleave_phases(x[0], x[1]); }},
      {"phases-dcae-256",
       {{1, 257, 257, 1024}, {1, 256, 256, 512}},
       [](In x) { return interleave_phases(x[0], x[1]); }},
      {"attention-mmdit",
       {{1, 8828, 9216}},
       [](In x) {
         auto h = heads(x[0], 3, 24);
         return attention(h[0], h[1], h[2], {}, {.scale = 0.088});
       }},
      {"attention-mmdit-768",
       {{1, 76544, 9216}},
       [](In x) {
         auto h = heads(x[0], 3, 24);
         return attention(h[0], h[1], h[2], {}, {.scale = 0.088});
       }},
      {"attention-t5",
       {{1, 512, 12288}},
       [](In x) {
         auto h = heads(x[0], 3, 64);
         Value bias = x[0].graph().constant(Tensor::zeros({1, 64, 512, 512}));
         return attention(h[0], h[1], h[2], bias, {});
       }},
      {"norm-rope-mmdit",
       {{1, 8828, 9216}, {128}},
       [](In x) {
         Value table = x[0].graph().constant(Tensor::zeros({8828, 128}));
         return rms_norm_rope(heads(x[0], 3, 24)[1], x[1], table, table, 1e-6);
       }},
      {"norm-mmdit",
       {{1, 8828, 3072}, {1, 1, 3072}, {1, 1, 3072}},
       [](In x) { return layer_norm(x[0], 1e-6, x[1], x[2]); }},
      {"modulation-mmdit-int8", {{1, 1, 3072}}, [](In x) { return modulation(x[0], QuantFormat::int8_weights); }},
      {"modulation-mmdit-fp8", {{1, 1, 3072}}, [](In x) { return modulation(x[0], QuantFormat::fp8_weights); }},
      {"modulation-mmdit-nvfp4", {{1, 1, 3072}}, [](In x) { return modulation(x[0], QuantFormat::nvfp4); }},
      {"modulation-mmdit", {{1, 1, 3072}, {27648, 3072}, {27648}}, [](In x) { return linear(x[0], x[1], x[2]); }},
      {"gate-mmdit", {{1, 1, 3072}, {1, 8828, 3072}, {1, 8828, 3072}}, [](In x) { return mul_add(x[0], x[1], x[2]); }},
      {"gated-gelu-t5",
       {{1, 512, 20480}},
       [](In x) {
         auto halves = split(x[0], 2, 2);
         return act_mul(halves[0], halves[1], "gelu_tanh");
       }},
      {"gemma-norm", {{2, 300, 2304}, {2304}}, [](In x) { return rms_norm(x[0], x[1], {}, 1e-6, 1); }},
      {"gemma-norm-add",
       {{2, 300, 2304}, {2, 300, 2304}, {2304}},
       [](In x) { return rms_norm_add(x[0], x[1], x[2], {}, 1e-6, 1); }},
      {"gemma-norm-add-norm",
       {{2, 300, 2304}, {2, 300, 2304}, {2304}, {2304}},
       [](In x) {
         return rms_norm_add_norm(x[0], x[1], {x[2], 1e-6, 1}, {x[3], 1e-6, 1});
       }},
      {"gemma-rope",
       {{2, 300, 4096}},
       [](In x) {
         Value table = x[0].graph().constant(Tensor::zeros({300, 256}));
         return rope(reshape(slice(x[0], 2, 0, 3072), {2, 300, 12, 256}), table, table);
       }},
      {"gemma-gelu",
       {{2, 300, 18432}},
       [](In x) {
         auto halves = split(x[0], 2, 2);
         return act_mul(halves[0], halves[1], "gelu_tanh");
       }},
      {"gemma-attention", {{2, 300, 4096}}, [](In x) { return gemma_attention(x[0], 300); }},
      {"gemma-attn-padded", {{2, 300, 4096}}, [](In x) { return gemma_attention(x[0], 90); }},
  };
}

Tensor filled(const Shape& shape) {
  constexpr int64_t kDrawn = 1 << 20;
  static const Tensor drawn = CpuGenerator(1).randn({kDrawn}).to(DType::bf16);
  Tensor all(shape, DType::bf16);
  for (int64_t at = 0; at < all.numel(); at += kDrawn) {
    std::memcpy(all.data<bf16>() + at, drawn.raw(), static_cast<size_t>(std::min(kDrawn, all.numel() - at)) * 2);
  }
  return all;
}

// Of all steps together, but those of the op `without`.
double median_seconds(const Executable& exe, const std::map<std::string, Tensor>& feed, int runs,
                      const OpDef* without = nullptr) {
  std::vector<double> totals;
  for (int i = 0; i < runs; ++i) {
    double total = 0;
    for (const Executable::StepTime& step : exe.profile(feed)) {
      if (exe.graph().node(step.node).op != without) total += step.seconds;
    }
    totals.push_back(total);
  }
  std::sort(totals.begin(), totals.end());
  return totals[totals.size() / 2];
}

void measure(const Case& c, const Runtime& runtime) {
  Graph graph;
  std::vector<Value> inputs;
  std::map<std::string, Tensor> feed;
  size_t bytes = 0;
  for (size_t i = 0; i < c.shapes.size(); ++i) {
    std::string name = "x" + std::to_string(i);
    bool weight = i > 0 && c.shapes[i].rank() != 3 && c.shapes[i].product(1, c.shapes[i].rank()) < 100000;
    Tensor values = filled(c.shapes[i]);
    bytes += values.bytes();
    if (weight) {
      inputs.push_back(graph.parameter(name, values));
    } else {
      inputs.push_back(graph.input(name, c.shapes[i], DType::bf16));
      feed[name] = runtime.context.device->to_device(values);
    }
  }
  Value y = c.build(inputs);
  bytes += static_cast<size_t>(y.shape().numel()) * dtype_size(y.dtype());
  graph.output("y", y);
  Executable exe = compile(graph, *runtime.backend, runtime.context);
  double time = median_seconds(exe, feed, 7);
  std::string kernels = exe.variants().empty() ? "" : "  " + attention_of(exe);
  std::printf("%-19s %9.1f us  %6.2f TB/s%s\n", c.name, time * 1e6, static_cast<double>(bytes) / time / 1e12,
              kernels.c_str());
  std::fflush(stdout);
}

struct CodesCase {
  const char* name;
  int64_t m, n, k;
  bool bias = false;
  const char* act = "none";
  bool gate = false, residual = false;
};
constexpr CodesCase kCodesCases[] = {
    {"1.6b-qkv", 2048, 6720, 2240},
    {"1.6b-out", 2048, 2240, 2240, true},
    {"1.6b-cross-out", 2048, 2240, 2240, true, "none", false, true},
    {"1.6b-glu", 2048, 11200, 2240, true},
    {"1.6b-down", 2048, 2240, 5600},
    {"0.6b-qkv", 2048, 3456, 1152},
    {"mmdit-qkv", 8828, 9216, 3072, true},
    {"mmdit-mlp", 8828, 12288, 3072, true, "gelu_tanh"},
    {"mmdit-down", 8828, 3072, 12288, true, "none", true, true},
    {"mmdit-both", 8828, 21504, 3072, true},
};

// One product with random operands; `format` empty: of bf16.
struct ProductBench {
  const Runtime& runtime;
  const CodesCase& c;
  std::map<std::string, Tensor> feed;

  Value build(Graph& graph, std::optional<QuantFormat> format, const Tensor& weight) {
    auto input = [&](const char* name, const Shape& shape) {
      if (!feed.contains(name)) feed[name] = runtime.context.device->to_device(filled(shape));
      return graph.input(name, shape, DType::bf16);
    };
    Value x = input("x", {1, c.m, c.k}), bias, gate, residual;
    if (c.bias) bias = graph.parameter("bias", filled({c.n}));
    if (c.gate) gate = input("gate", {1, 1, c.n});
    if (c.residual) residual = input("residual", {1, c.m, c.n});
    if (!format) {
      Value w = graph.parameter("w", weight);
      return residual.defined() ? linear_add(x, w, bias, residual, gate) : linear(x, w, bias, c.act);
    }
    QuantizedMatrix q = quantize_matrix(weight, *format);
    QuantizedWeight codes{*format, graph.parameter("codes", q.codes), graph.parameter("scale", q.scale), {}};
    return quantized_linear_rows(quantize_rows(x, *format), codes, {bias, c.act, gate, residual}, {1, c.m},
                                 DType::bf16);
  }

  Tensor measure(const char* what, std::optional<QuantFormat> format, const Tensor& weight, const Tensor& expected) {
    Graph graph;
    graph.output("y", build(graph, format, weight));
    Executable exe = compile(graph, *runtime.backend, runtime.context);
    Tensor y = exe.run(feed).at("y");
    double time = median_seconds(exe, feed, 15, &kQuantizeRows);  // which says nothing about the product
    std::printf(" %s %.1f us %.0f", what, time * 1e6,
                2 * static_cast<double>(c.m) * static_cast<double>(c.n * c.k) / time / 1e12);
    if (expected.defined()) {
      double most = 0;
      int64_t count = 0;
      for (int64_t i = 0; i < y.numel(); ++i) {
        double off = std::abs(static_cast<double>(static_cast<float>(y.data<bf16>()[i])) -
                              static_cast<double>(static_cast<float>(expected.data<bf16>()[i])));
        if (!(off <= most)) most = off;
        count += off != 0;
      }
      std::printf(" (%lld differ, by %.3g)", static_cast<long long>(count), most);
    }
    std::fflush(stdout);
    return y;
  }
};

// Products of codes: microseconds and TFLOP/s in bf16, then of FP8 and INT8 codes by cuBLASLt (INT8's with a kernel
// that finishes its sums) and by each of our own kernels, with the largest difference from that.
void compare_codes(const Runtime& runtime, std::span<char*> names) {
  using cuda::CodesKernel;
  for (const CodesCase& c : kCodesCases) {
    auto is_named = [&](const char* name) { return !std::strcmp(name, c.name); };
    if (!names.empty() && std::none_of(names.begin(), names.end(), is_named)) continue;
    ProductBench bench{runtime, c, {}};
    Tensor weight = filled({c.n, c.k});
    std::printf("%-14s", c.name);
    bench.measure("bf16", {}, weight, {});
    for (auto [format, codes] : {std::pair{QuantFormat::fp8, DType::f8_e4m3}, {QuantFormat::int8, DType::i8}}) {
      if (format == QuantFormat::fp8 && !cuda::has_fp8_products()) continue;
      std::printf(" | %s", std::string(quant_format_name(format)).c_str());
      cuda::codes_kernel_override = CodesKernel::none;
      Tensor expected = bench.measure("cublas", format, weight, {});
      for (auto [kernel, what] : {std::pair{CodesKernel::mma, "mma"}, {CodesKernel::wgmma, "wgmma"}}) {
        if (!cuda::codes_kernel_runs(kernel, codes)) continue;
        cuda::codes_kernel_override = kernel;
        bench.measure(what, format, weight, expected);
      }
      cuda::codes_kernel_override.reset();
    }
    std::printf("\n");
  }
}

}  // namespace

// --attention=NAME before the names: as kinora's.
int main(int argc, char** argv) {
  std::string attention = "auto";
  if (argc > 1 && std::string_view(argv[1]).starts_with("--attention=")) {
    attention = argv[1] + 12;
    --argc, ++argv;
  }
  Runtime runtime = make_runtime("cuda", "bfloat16", 1, nullptr, attention);
  std::printf("%s\n", describe(runtime).c_str());
  if (argc > 1 && std::string_view(argv[1]) == "--codes") {
    compare_codes(runtime, {argv + 2, static_cast<size_t>(argc - 2)});
    return 0;
  }
  for (const Case& c : cases()) {
    bool wanted =
        argc == 1 || std::any_of(argv + 1, argv + argc, [&](const char* name) { return !std::strcmp(name, c.name); });
    if (wanted) measure(c, runtime);
  }
}
