// Times cuBLASLt's suggestions for the products of the models, one line a shape: the time of its favourite, of the
// best of sixteen, and of the best where sums may be split, on random data, in a graph of launches over changing
// operands. With --formats instead: the products of the Sana blocks with quantized weights, as the backend runs them,
// beside bfloat16's.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/rng.h"
#include "cuda/backend.h"
#include "cuda/cublaslt.h"
#include "graph/executable.h"
#include "ops/matmul.h"
#include "ops/quantize.h"

using namespace kinora;
using namespace kinora::cuda;

namespace {

constexpr int kSuggestions = 16, kRuns = 20;

Tensor random16(Device& device, int64_t count) {
  constexpr int64_t kDrawn = 1 << 20;
  static const Tensor drawn = CpuGenerator(1).randn({kDrawn}).to(DType::bf16);
  Tensor all({count}, DType::bf16);
  for (int64_t at = 0; at < count; at += kDrawn) {
    std::memcpy(all.data<bf16>() + at, drawn.raw(), static_cast<size_t>(std::min(kDrawn, count - at)) * 2);
  }
  return device.to_device(all);
}

// Microseconds of one product.
double time(Device& device, const Product& product, const std::vector<Tensor>& x, const std::vector<Tensor>& w,
            const Tensor& bias, const Tensor& y, void* workspace) {
  auto stream = static_cast<cudaStream_t>(device.queue());
  auto recording = device.record([&] {
    for (int i = 0; i < kRuns; ++i) {
      product.run(x[size_t(i) % x.size()].raw(), w[size_t(i) % w.size()].raw(), bias.raw(), y.raw(),
                  const_cast<void*>(y.raw()), workspace, stream);
    }
  });
  cudaEvent_t start, stop;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 5; ++i) {
    check(cudaEventRecord(start, stream));
    recording->enqueue();
    check(cudaEventRecord(stop, stream));
    device.wait();
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms * 1000 / kRuns);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  std::sort(times.begin(), times.end());
  return times[2];
}

void measure(Device& device, const char* name, ProductShape shape) {
  shape.transpose_b = true;
  shape.dtype = DType::bf16;
  std::vector<Tensor> x, w;
  int copies = std::max<int>(1, static_cast<int>((int64_t{100} << 20) / (2 * shape.n * shape.k)));
  copies = std::min(copies, 8);
  for (int i = 0; i < copies; ++i) {
    x.push_back(random16(device, shape.m * shape.k));
    w.push_back(random16(device, shape.n * shape.k));
  }
  Tensor bias = random16(device, shape.n), y = random16(device, shape.m * shape.n);
  auto workspace = device.allocate(size_t{32} << 20);
  double first = 0, best = 0, split = 0;
  int at = 0;
  for (bool may_split : {false, true}) {
    shape.split = may_split;
    for (int i = 0; i < kSuggestions; ++i) {
      Product product(shape, i);
      if (!product.available()) break;
      double us = time(device, product, x, w, bias, y, workspace.get());
      double& least = may_split ? split : best;
      if (i == 0 && !may_split) first = us;
      if (i > 0 && us >= least) continue;
      least = us;
      if (!may_split) at = i;
    }
  }
  double flops = 2.0 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  std::printf(
      "%-24s %6lld x %6lld x %5lld  favourite %8.1f us %5.0f TFLOP/s   best (%2d) %8.1f us %5.0f TFLOP/s   split "
      "%8.1f us\n",
      name, static_cast<long long>(shape.m), static_cast<long long>(shape.n), static_cast<long long>(shape.k), first,
      flops / first / 1e6, at, best, flops / best / 1e6, split);
}

constexpr QuantFormat kFormats[] = {QuantFormat::fp8,          QuantFormat::int8,  QuantFormat::fp8_weights,
                                    QuantFormat::int8_weights, QuantFormat::nvfp4, QuantFormat::nvfp4_both};

struct Layer {
  const char* name;
  int64_t m, n, k;
  bool bias = false, residual = false;
};

constexpr int64_t kDrawnRows = 64;  // more would take longer to make than to measure

// [rows, …]: those of `few`, over and over.
Tensor repeated(const Tensor& few, int64_t rows) {
  Tensor all(few.shape().with(0, rows), few.dtype());
  for (int64_t at = 0; at < rows; at += kDrawnRows) {
    Tensor to = all.rows(at, std::min(at + kDrawnRows, rows));
    std::memcpy(to.raw(), few.raw(), to.bytes());
  }
  return all;
}

Tensor drawn(uint64_t seed, int64_t rows, int64_t k) {
  return repeated(CpuGenerator(seed).randn({kDrawnRows, k}).to(DType::bf16), rows);
}

QuantizedWeight random_weight(Graph& graph, QuantFormat format, int64_t n, int64_t k) {
  QuantizedMatrix q = quantize_matrix(CpuGenerator(2).randn({kDrawnRows, k}).to(DType::bf16), format);
  QuantizedWeight weight{
      format, graph.parameter("codes", repeated(q.codes, n)), graph.parameter("scale", repeated(q.scale, n)), {}};
  if (q.scale_2.defined()) weight.scale_2 = graph.parameter("scale_2", q.scale_2);
  return weight;
}

// Microseconds of each step that is not of a leaf, the median of several runs, and the bytes of the result.
std::vector<double> step_times(const Graph& graph, const std::map<std::string, Tensor>& feed, ExecutionContext context,
                               Tensor& result) {
  Executable executable = compile(graph, backend(), std::move(context));
  result = executable.run(feed).at("y").to(DType::f32);
  std::vector<std::vector<double>> all;
  for (int run = 0; run < 15; ++run) {
    auto times = executable.profile(feed);
    all.resize(times.size());
    for (size_t i = 0; i < times.size(); ++i) all[i].push_back(times[i].seconds * 1e6);
  }
  std::vector<double> medians;
  for (auto& each : all) {
    std::sort(each.begin(), each.end());
    medians.push_back(each[each.size() / 2]);
  }
  return medians;
}

double relative_error(const Tensor& got, const Tensor& exact) {
  double error = 0, total = 0;
  for (int64_t i = 0; i < got.numel(); ++i) {
    double a = got.data<float>()[i], b = exact.data<float>()[i];
    error += (a - b) * (a - b);
    total += b * b;
  }
  return std::sqrt(error / total);
}

void measure_formats(const ExecutionContext& context, const Layer& l) {
  std::map<std::string, Tensor> feed{{"x", drawn(3, l.m, l.k)}};
  if (l.residual) feed["residual"] = drawn(4, l.m, l.n);
  auto leaves = [&](Graph& graph) {
    struct {
      Value x, bias, residual;
    } v{graph.input("x", {l.m, l.k}, DType::bf16), {}, {}};
    if (l.bias) v.bias = graph.parameter("bias", CpuGenerator(5).randn({l.n}).to(DType::bf16));
    if (l.residual) v.residual = graph.input("residual", {l.m, l.n}, DType::bf16);
    return v;
  };
  Graph plain;
  auto v = leaves(plain);
  Value weight = plain.parameter("w", drawn(2, l.n, l.k));
  plain.output("y", l.residual ? linear_add(v.x, weight, v.bias, v.residual) : linear(v.x, weight, v.bias));
  Tensor exact, got;
  double base = step_times(plain, feed, context, exact).back();
  double flops = 2.0 * static_cast<double>(l.m) * static_cast<double>(l.n) * static_cast<double>(l.k);
  std::printf("%-18s %5lld x %6lld x %5lld  bf16 %7.1f us %5.0f TFLOP/s", l.name, static_cast<long long>(l.m),
              static_cast<long long>(l.n), static_cast<long long>(l.k), base, flops / base / 1e6);
  for (QuantFormat format : kFormats) {
    Graph graph;
    auto q = leaves(graph);
    graph.output(
        "y", quantized_linear(q.x, random_weight(graph, format, l.n, l.k), {.bias = q.bias, .residual = q.residual}));
    std::vector<double> times = step_times(graph, feed, context, got);
    std::printf("  %s %.1f", std::string(quant_format_name(format)).c_str(), times.back());
    if (times.size() > 1) std::printf(" + rows %.1f", times.front());
    std::printf(" (error %.1e)", relative_error(got, exact));
  }
  std::printf("\n");
}

int measure_all_formats() {
  ExecutionContext context;
  context.device = open_device();
  context.pool = std::make_shared<ThreadPool>(8);
  std::printf("%s\nmicroseconds of the product, and of quantizing x where that is done\n", description().c_str());
  for (const Layer& layer :
       {Layer{"1.6B qkv", 2048, 6720, 2240}, Layer{"1.6B out, cross q", 2048, 2240, 2240, true},
        Layer{"1.6B cross out", 2048, 2240, 2240, true, true}, Layer{"1.6B inverted", 2048, 11200, 2240, true},
        Layer{"1.6B point", 2048, 2240, 5600}, Layer{"1.6B cross kv, 7", 600, 31360, 2240, true},
        Layer{"Gemma gate, up", 600, 18432, 2304}, Layer{"Gemma down", 600, 2304, 9216},
        Layer{"MMDiT single in", 4096, 21504, 3072, true}, Layer{"MMDiT single out", 4096, 3072, 15360, true}}) {
    measure_formats(context, layer);
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::strcmp(arguments[1], "--formats") == 0) return measure_all_formats();
  auto device = open_device();
  std::printf("%s\n", description().c_str());
  for (int64_t m : {2048, 32768}) {
    measure(*device, "1.6B qkv", {.m = m, .n = 6720, .k = 2240});
    measure(*device, "1.6B out, cross q", {.m = m, .n = 2240, .k = 2240, .bias = true});
    measure(*device, "1.6B cross out", {.m = m, .n = 2240, .k = 2240, .bias = true, .residual = true});
    measure(*device, "1.6B inverted", {.m = m, .n = 11200, .k = 2240, .bias = true});
    measure(*device, "1.6B point", {.m = m, .n = 2240, .k = 5600});
  }
  measure(*device, "1.6B cross kv, 1 layer", {.m = 600, .n = 4480, .k = 2240, .bias = true});
  measure(*device, "1.6B cross kv, 7", {.m = 600, .n = 31360, .k = 2240, .bias = true});
  measure(*device, "0.6B qkv", {.m = 2048, .n = 3456, .k = 1152});
  measure(*device, "0.6B out, cross q", {.m = 2048, .n = 1152, .k = 1152, .bias = true});
  measure(*device, "0.6B inverted", {.m = 2048, .n = 5760, .k = 1152, .bias = true});
  measure(*device, "0.6B point", {.m = 2048, .n = 1152, .k = 2880});
  measure(*device, "Gemma qkv", {.m = 600, .n = 4096, .k = 2304});
  measure(*device, "Gemma o", {.m = 600, .n = 2304, .k = 2048});
  measure(*device, "Gemma gate, up", {.m = 600, .n = 18432, .k = 2304});
  measure(*device, "Gemma down", {.m = 600, .n = 2304, .k = 9216});
  for (int64_t m : {512, 8316}) {
    measure(*device, "MMDiT qkv", {.m = m, .n = 9216, .k = 3072, .bias = true});
    measure(*device, "MMDiT proj", {.m = m, .n = 3072, .k = 3072, .bias = true});
    measure(*device, "MMDiT mlp.0", {.m = m, .n = 12288, .k = 3072, .bias = true, .gelu = true});
    measure(*device, "MMDiT mlp.2", {.m = m, .n = 3072, .k = 12288, .bias = true});
  }
  for (int64_t m : {8828, 76544}) {
    measure(*device, "MMDiT one stream, qkv", {.m = m, .n = 9216, .k = 3072, .bias = true});
    measure(*device, "MMDiT one stream, mlp", {.m = m, .n = 12288, .k = 3072, .bias = true, .gelu = true});
    measure(*device, "MMDiT one stream, out", {.m = m, .n = 3072, .k = 15360, .bias = true});
  }
  measure(*device, "MMDiT modulation", {.m = 1, .n = 27648, .k = 3072, .bias = true});
  measure(*device, "T5 qkv", {.m = 512, .n = 12288, .k = 4096});
  measure(*device, "T5 o", {.m = 512, .n = 4096, .k = 4096});
  measure(*device, "T5 wi", {.m = 512, .n = 20480, .k = 4096});
  measure(*device, "T5 wo", {.m = 512, .n = 4096, .k = 10240});
  measure(*device, "large", {.m = 8192, .n = 8192, .k = 8192});
}
