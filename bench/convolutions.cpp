// Times the engines that cuDNN suggests for the convolutions of HunyuanVideo's decoder (129 frames of 192 x 352), with
// bias, one line an engine: its place among the suggestions, its number, what it takes on besides, time and rate. Then
// the kernel of our own that stands in where there is none.
//   bench_convolutions [SUGGESTIONS [NAME...]]      4 and all
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "core/rng.h"
#include "cuda/backend.h"
#include "cuda/cudnn.h"
#include "cuda/kernels.h"
#include "ops/conv.h"

using namespace kinora;
using namespace kinora::cuda;

namespace {

struct Case {
  const char* name;
  int64_t in, out;
  Ints size, kernel;
};

// A third of the frames where the film is cut into runs of so many.
std::vector<Case> cases() {
  Ints three{3, 3, 3}, two{2, 2, 2};
  return {{"512", 512, 512, {35, 26, 46}, three},       {"512-up", 512, 2048, {35, 26, 46}, {3, 2, 2}},
          {"512-large", 512, 512, {35, 50, 90}, three}, {"512-up-large", 512, 4096, {34, 50, 90}, two},
          {"512-256", 512, 256, {67, 98, 178}, three},  {"256", 256, 256, {67, 98, 178}, three},
          {"256-up", 256, 2048, {24, 98, 178}, two},    {"256-128", 256, 128, {45, 194, 354}, three},
          {"128", 128, 128, {67, 194, 354}, three},     {"128-out", 128, 8, {67, 194, 354}, three},
          {"2d-128", 128, 128, {1024, 1024}, {3, 3}}};
}

void* random16(Device& device, int64_t count, std::vector<std::shared_ptr<void>>& held) {
  constexpr int64_t kDrawn = 1 << 20;
  static const Tensor drawn = CpuGenerator(1).randn({kDrawn}).to(DType::bf16);
  held.push_back(device.allocate(static_cast<size_t>(count) * 2));
  for (int64_t at = 0; at < count; at += kDrawn) {
    auto bytes = static_cast<size_t>(std::min(kDrawn, count - at)) * 2;
    device.upload(static_cast<std::byte*>(held.back().get()) + at * 2, drawn.raw(), bytes);
  }
  return held.back().get();
}

int64_t product(const Ints& values) {
  int64_t total = 1;
  for (int64_t v : values) total *= v;
  return total;
}

double best_seconds(Device& device, const std::function<void()>& enqueue) {
  double best = 1e9;
  for (int i = 0; i < 4; ++i) {
    auto start = device.mark();
    enqueue();
    auto stop = device.mark();
    stop->wait();
    best = std::min(best, stop->seconds_after(*start));
  }
  return best;
}

Shape film(const Ints& size, int64_t channels) { return {1, size[0], size[1], size[2], channels}; }

// The step of the backend's own kernel for this film; undefined when it cannot.
Step own_step(const Convolution& c) {
  Graph graph;
  Value x = graph.input("x", film(c.size, c.in), c.dtype), bias = graph.input("bias", {c.out}, c.dtype);
  Value w = graph.input("w", {c.out, c.kernel[0], c.kernel[1], c.kernel[2], c.in}, c.dtype);
  Value y = conv3d(x, w, bias, {.weight_layout = "othwi"});
  StepSpec spec{.node = graph.node(y.id()), .inputs = {}, .values = {}};
  for (Value input : {x, w, bias}) spec.inputs.push_back({input.shape(), input.dtype()});
  return supports_film_conv3d(spec) ? make_film_conv3d(spec) : Step();
}

void measure(Device& device, const Case& c, int suggestions) {
  Convolution problem;
  size_t axes = c.size.size();
  problem.dtype = DType::bf16;
  problem.size = c.size;
  problem.kernel = c.kernel;
  problem.stride = problem.dilation = Ints(axes, 1);
  problem.before = problem.after = Ints(axes, 0);
  problem.in = c.in;
  problem.out = c.out;
  double flops = 2.0 * static_cast<double>(product(problem.out_size()) * product(c.kernel) * c.in * c.out);
  std::vector<std::shared_ptr<void>> held;
  void *x = random16(device, product(c.size) * c.in, held), *y = random16(device, product(c.size) * c.out, held);
  void *weight = random16(device, product(c.kernel) * c.in * c.out, held), *bias = random16(device, c.out, held);
  for (bool biased : {true, false}) {
    problem.bias = biased;
    for (int i = 0; i < suggestions; ++i) {
      std::shared_ptr<const ConvolutionPlan> plan = convolution_plan(problem, i);
      if (!plan) break;
      std::shared_ptr<void> workspace = device.allocate(plan->workspace_bytes());
      auto* stream = static_cast<cudaStream_t>(device.queue());
      double best = best_seconds(device, [&] { plan->run(stream, x, weight, bias, nullptr, y, workspace.get()); });
      std::printf("%-14s %s %2d  engine %4lld  %s %10.1f us %7.1f TFLOP/s  workspace %zu MiB\n", c.name,
                  biased ? "biased" : "plain ", i, static_cast<long long>(plan->engine()),
                  plan->adds_bias() ? "+bias" : "     ", best * 1e6, flops / best / 1e12,
                  plan->workspace_bytes() >> 20);
      std::fflush(stdout);
    }
  }
  Step own = axes == 3 ? own_step(problem) : Step();
  if (!own.run) return;
  static ThreadPool pool(1);
  std::vector<const void*> in{x, weight, bias};
  double best = best_seconds(device, [&] { own.run({in, y, nullptr, pool, device.queue()}); });
  std::printf("%-14s own    %28s %10.1f us %7.1f TFLOP/s\n", c.name, "+bias", best * 1e6, flops / best / 1e12);
}

}  // namespace

int main(int argc, char** argv) {
  std::shared_ptr<Device> device = open_device();
  int suggestions = argc > 1 ? std::atoi(argv[1]) : 4;
  for (const Case& c : cases()) {
    bool wanted =
        argc <= 2 || std::any_of(argv + 2, argv + argc, [&](const char* n) { return !std::strcmp(n, c.name); });
    if (wanted) measure(*device, c, suggestions);
  }
}
