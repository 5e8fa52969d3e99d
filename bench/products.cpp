// Times cuBLASLt's suggestions for the products of the models, one line a shape: the time of its favourite and of the
// best of sixteen, on random data, in a graph of launches over changing operands.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/rng.h"
#include "cuda/backend.h"
#include "cuda/cublaslt.h"

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
  double first = 0, best = 1e30;
  int at = 0;
  for (int i = 0; i < kSuggestions; ++i) {
    Product product(shape, i);
    if (!product.available()) break;
    double us = time(device, product, x, w, bias, y, workspace.get());
    if (i == 0) first = us;
    if (us < best) {
      best = us;
      at = i;
    }
  }
  double flops = 2.0 * static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  std::printf("%-24s %6lld x %6lld x %5lld  favourite %8.1f us %5.0f TFLOP/s   best (%2d) %8.1f us %5.0f TFLOP/s\n",
              name, static_cast<long long>(shape.m), static_cast<long long>(shape.n), static_cast<long long>(shape.k),
              first, flops / first / 1e6, at, best, flops / best / 1e6);
}

}  // namespace

int main() {
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
