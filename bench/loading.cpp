// Times what stands between a file of weights and a model on the GPU:
//   bench_loading [GIB] [FILE]
// Weights of an MMDiT's blocks (bfloat16, 8 GiB by default) are written to FILE (./bench_loading.safetensors by
// default; it is removed at the end) and put on the device as compiling does it. "new mapping": the pages are in the
// system's cache but not yet in this process; "again": they are. Beside them the bus alone, from pinned memory. Then
// the same weights are quantized; their rate, too, is in bytes of bfloat16.
#include <cuda_runtime.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "core/rng.h"
#include "cuda/cuda.h"
#include "diffusion/backends.h"
#include "io/safetensors.h"

using namespace kinora;

namespace {

double seconds(const std::function<void()>& body) {
  auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void print(const char* what, int threads, size_t bytes, double time) {
  std::printf("%-28s %3d threads %7.2f s %7.1f GB/s\n", what, threads, time, static_cast<double>(bytes) / time / 1e9);
  std::fflush(stdout);
}

// A block's products, and the small tensors beside them.
void write_weights(const std::string& path, size_t bytes) {
  constexpr int64_t kWidth = 3072;
  const Shape kShapes[] = {{3 * kWidth, kWidth}, {4 * kWidth, kWidth}, {kWidth, 4 * kWidth}, {kWidth, kWidth},
                           {6 * kWidth, kWidth}, {6 * kWidth},         {3 * kWidth},         {128}};
  std::vector<SafetensorsSpec> specs;
  size_t total = 0;
  for (size_t i = 0; total < bytes; ++i) {
    const Shape& shape = kShapes[i % std::size(kShapes)];
    specs.push_back({"w" + std::to_string(i), DType::bf16, shape});
    total += static_cast<size_t>(shape.numel()) * 2;
  }
  Tensor drawn = CpuGenerator(1).randn({6 * kWidth, 64}).to(DType::bf16), all({6 * kWidth, kWidth}, DType::bf16);
  for (int64_t i = 0; i < all.numel(); ++i) all.data<bf16>()[i] = drawn.data<bf16>()[i % drawn.numel()];
  write_safetensors(path, specs, {}, [&](const std::function<void(const Tensor&)>& write) {
    for (const SafetensorsSpec& spec : specs) {
      write(Tensor(spec.shape, DType::bf16, std::shared_ptr<void>(), all.raw()));
    }
  });
}

void time_bus(Device& device) {
  constexpr size_t kBytes = size_t{64} << 20;
  constexpr int kCopies = 100;
  void* pinned = nullptr;
  cuda::check(cudaMallocHost(&pinned, kBytes));
  auto memory = device.allocate(kBytes);
  auto stream = static_cast<cudaStream_t>(device.queue());
  double time = seconds([&] {
    for (int i = 0; i < kCopies; ++i) {
      cuda::check(cudaMemcpyAsync(memory.get(), pinned, kBytes, cudaMemcpyHostToDevice, stream));
    }
    device.wait();
  });
  print("the bus, pinned memory", 0, kCopies * kBytes, time);
  cudaFreeHost(pinned);
}

void time_uploads(Device& device, const std::string& path, ThreadPool& pool) {
  Weights weights = open_weights(std::filesystem::path(path).parent_path(), std::filesystem::path(path).stem());
  for (const char* what : {"new mapping", "again"}) {
    std::vector<std::shared_ptr<void>> there;
    double time = seconds([&] {
      for (const std::string& name : weights.names()) {
        const Tensor& tensor = *weights.find(name);
        there.push_back(device.allocate(tensor.bytes()));
        device.upload(there.back().get(), tensor.raw(), tensor.bytes(), &pool);
      }
      device.wait();
    });
    print(what, pool.size(), weights.bytes(), time);
  }
}

void time_downloads(Device& device, ThreadPool& pool) {
  constexpr size_t kBytes = size_t{1} << 30;
  auto memory = device.allocate(kBytes);
  Tensor host({static_cast<int64_t>(kBytes)}, DType::u8);
  device.wait();
  for (const char* what : {"download, new memory", "download, again"}) {
    print(what, pool.size(), kBytes, seconds([&] { device.download(host.raw(), memory.get(), kBytes, &pool); }));
  }
}

// As --quantize does it on the device and on the host, the latter of one weight.
void time_quantizing(const Runtime& runtime, const std::string& path) {
  ThreadPool& pool = *runtime.context.pool;
  Weights weights = open_weights(std::filesystem::path(path).parent_path(), std::filesystem::path(path).stem());
  for (const char* name : {"int8", "fp8", "nvfp4"}) {
    QuantFormat format = quant_format_from_name(name);
    Quantizer quantizer = runtime.backend->quantizer(runtime.context.device, runtime.context.pool);
    size_t bytes = 0;
    double time = seconds([&] {
      for (const std::string& each : weights.names()) {
        const Tensor& tensor = *weights.find(each);
        if (tensor.shape().rank() != 2) continue;
        bytes += tensor.bytes();
        quantizer(tensor, format);
      }
    });
    print((std::string(name) + " on the device").c_str(), pool.size(), bytes, time);
    const Tensor& first = *weights.find("w0");
    time = seconds([&] { quantize_matrix(first, format, &pool); });
    print((std::string(name) + " on the host").c_str(), pool.size(), first.bytes(), time);
  }
}

}  // namespace

int main(int argc, char** argv) try {
  size_t bytes = static_cast<size_t>(argc > 1 ? std::max(1, std::atoi(argv[1])) : 8) << 30;
  std::string path = std::filesystem::absolute(argc > 2 ? argv[2] : "bench_loading.safetensors");
  Runtime runtime = make_runtime("cuda", "auto", 0, nullptr);
  Device& device = *runtime.context.device;
  std::printf("writing: %.1f s\n", seconds([&] { write_weights(path, bytes); }));
  time_bus(device);
  ThreadPool few(4);
  for (ThreadPool* pool : {runtime.context.pool.get(), &few}) {
    time_uploads(device, path, *pool);
    time_downloads(device, *pool);
  }
  time_quantizing(runtime, path);
  std::filesystem::remove(path);
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
