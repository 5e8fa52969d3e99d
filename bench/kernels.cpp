// Each kernel alone, on the shapes of Sana 0.6B at 1024² and of its autoencoder at 256², in float32 and bfloat16:
//   ./dev kernels [--benchmark_filter=linear] [--threads=2]
// The counter is work done a second: multiplications and additions for products, bytes read and written for the rest.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <cstring>

#include "cpu/backend.h"
#include "graph/executable.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/quantize.h"

namespace kinora {
namespace {

using Build = Value (*)(std::span<const Value> inputs);

struct Case {
  const char* name;
  std::vector<Shape> inputs;   // streams of activations
  std::vector<Shape> weights;  // stored in bfloat16, as published
  Build build;                 // inputs, then weights
  double operations;           // 0: count bytes instead
  const char* format = "";     // of the first weight, if it is quantized; the build gets it as `dequantize`
};

constexpr int64_t kTokens = 1024, kWidth = 1152, kHidden = 2880, kCaption = 300;

constexpr double kToQ = 2.0 * kTokens * kWidth * kWidth;
Value to_q(std::span<const Value> v) { return linear(v[0], v[1]); }

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"linear/to_q", {{1, kTokens, kWidth}}, {{kWidth, kWidth}}, to_q, kToQ},
      {"linear/conv_inverted_silu",
       {{1, kTokens, kWidth}},
       {{2 * kHidden, kWidth}, {2 * kHidden}},
       [](std::span<const Value> v) { return linear(v[0], v[1], v[2], "silu"); },
       4.0 * kTokens * kWidth * kHidden},
      {"linear/to_q/int8", {{1, kTokens, kWidth}}, {{kWidth, kWidth}}, to_q, kToQ, "int8"},
      {"linear/to_q/int8-weights", {{1, kTokens, kWidth}}, {{kWidth, kWidth}}, to_q, kToQ, "int8-weights"},
      {"linear/to_q/fp8", {{1, kTokens, kWidth}}, {{kWidth, kWidth}}, to_q, kToQ, "fp8"},
      {"linear/to_q/nvfp4", {{1, kTokens, kWidth}}, {{kWidth, kWidth}}, to_q, kToQ, "nvfp4"},
      {"linear/to_q/nvfp4-both", {{1, kTokens, kWidth}}, {{kWidth, kWidth}}, to_q, kToQ, "nvfp4-both"},
      {"linear_few/nvfp4", {{1, 4, kWidth}}, {{kWidth, kWidth}}, to_q, kToQ / kTokens * 4, "nvfp4"},
      {"linear_few", {{1, 4, kWidth}}, {{kWidth, kWidth}}, to_q, kToQ / kTokens * 4},
      {"linear_add/conv_point",
       {{1, kTokens, kHidden}, {1, kTokens, kWidth}, {1, 1, kWidth}},
       {{kWidth, kHidden}},
       [](std::span<const Value> v) { return linear_add(v[0], v[3], {}, v[1], v[2]); },
       2.0 * kTokens * kWidth * kHidden},
      {"depthwise_glu",
       {{1, 32, 32, 2 * kHidden}},
       {{2 * kHidden, 1, 3, 3}, {2 * kHidden}},
       [](std::span<const Value> v) { return depthwise_glu(v[0], v[1], v[2]); },
       0},
      {"linear_attention",
       {{1, kTokens, 36, 32}, {1, kTokens, 36, 32}, {1, kTokens, 36, 32}},
       {},
       [](std::span<const Value> v) { return linear_attention(v[0], v[1], v[2]); },
       4.0 * kTokens * 36 * 32 * 33},
      {"attention/caption",
       {{1, kTokens, 16, 72}, {1, kCaption, 16, 72}, {1, kCaption, 16, 72}},
       {},
       [](std::span<const Value> v) { return attention(v[0], v[1], v[2], {}, {.scale = 0.118}); },
       4.0 * kTokens * kCaption * kWidth},
      {"layer_norm/modulated",
       {{1, kTokens, kWidth}, {1, 1, kWidth}, {1, 1, kWidth}},
       {},
       [](std::span<const Value> v) { return layer_norm(v[0], 1e-6, v[1], v[2]); },
       0},
      {"rms_norm",
       {{1, kTokens, kWidth}},
       {{kWidth}},
       [](std::span<const Value> v) { return rms_norm(v[0], v[1], {}, 1e-5); },
       0},
      {"conv2d/3x3_256",
       {{1, 64, 64, 256}},
       {{256, 256, 3, 3}, {256}},
       [](std::span<const Value> v) { return conv2d(v[0], v[1], v[2], {.padding = 1, .act = "silu"}); },
       2.0 * 64 * 64 * 256 * 256 * 9},
      {"silu", {{1, kTokens, kHidden}}, {}, [](std::span<const Value> v) { return silu(v[0]); }, 0},
  };
  return all;
}

Tensor filled(const Shape& shape, DType dtype) {
  Tensor tensor(shape, DType::f32);
  for (int64_t i = 0; i < tensor.numel(); ++i) tensor.data<float>()[i] = static_cast<float>(i % 251 - 125) / 125;
  return tensor.to(dtype);
}

void run_case(benchmark::State& state, const Case& c, DType dtype, const ExecutionContext& context) {
  Graph graph;
  std::vector<Value> values;
  std::map<std::string, Tensor> feed;
  for (const Shape& shape : c.inputs) {
    std::string name = "x" + std::to_string(values.size());
    values.push_back(graph.input(name, shape, dtype));
    feed[name] = filled(shape, dtype);
  }
  size_t bytes = 0;
  for (const auto& [name, tensor] : feed) bytes += tensor.bytes();
  for (const Shape& shape : c.weights) {
    Tensor weight = filled(shape, DType::bf16);
    if (*c.format && values.size() == c.inputs.size()) {
      QuantFormat format = quant_format_from_name(c.format);
      QuantizedMatrix q = quantize_matrix(weight, format);
      QuantizedWeight parts{format, graph.parameter("codes", q.codes), graph.parameter("scale", q.scale), {}};
      if (q.scale_2.defined()) parts.scale_2 = graph.parameter("scale_2", q.scale_2);
      values.push_back(dequantize(parts));
      bytes += q.codes.bytes();
      continue;
    }
    weight.keep_repacked();
    values.push_back(graph.parameter("w" + std::to_string(values.size()), weight));
    bytes += weight.bytes();
  }
  Value result = c.build(values);
  graph.output("y", result);
  Executable executable = compile(graph, cpu::backend(), context);
  executable.run(feed);  // packs what is packed once
  for (auto _ : state) benchmark::DoNotOptimize(executable.run(feed));
  bytes += graph.node(result.id()).spec.bytes();
  auto rate = benchmark::Counter::kIsIterationInvariantRate;
  if (c.operations > 0) {
    state.counters["operations"] = benchmark::Counter(c.operations, rate);
  } else {
    state.counters["bytes"] = benchmark::Counter(static_cast<double>(bytes), rate);
  }
}

}  // namespace
}  // namespace kinora

int main(int argc, char** argv) {
  using namespace kinora;
  int threads = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--threads=", 10) != 0) continue;
    threads = std::atoi(argv[i] + 10);
    std::copy(argv + i + 1, argv + argc + 1, argv + i);
    --argc;
    break;
  }
  ExecutionContext context;
  context.pool = std::make_shared<ThreadPool>(threads);
  for (const Case& c : cases()) {
    for (DType dtype : {DType::f32, DType::bf16}) {
      std::string name = std::string(c.name) + (dtype == DType::f32 ? "/float32" : "/bfloat16");
      benchmark::RegisterBenchmark(
          name.c_str(), [&c, dtype, context](benchmark::State& state) { run_case(state, c, dtype, context); })
          ->Unit(benchmark::kMillisecond)
          ->UseRealTime();
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
