#include "diffusion/backends.h"

#include <algorithm>
#include <set>

#include "core/log.h"
#include "cpu/backend.h"
#ifdef KINORA_CUDA
#include "cuda/backend.h"
#endif

namespace kinora {
namespace {

DType parse_dtype(const std::string& name, bool gpu) {
  if (name == "auto") return gpu ? DType::bf16 : DType::f32;
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  fail(ErrorKind::usage, "unknown dtype '" + name + "' (known: auto, float32, bfloat16, float16)");
}

// -1: the CPU.
int parse_device(const std::string& name) {
  if (name == "cpu") return -1;
  if (name == "cuda") return 0;
  if (name.starts_with("cuda:") && name.size() > 5 && name.size() < 9 &&
      name.find_first_not_of("0123456789", 5) == std::string::npos) {
    return std::stoi(name.substr(5));
  }
  if (name != "auto") fail(ErrorKind::usage, "unknown device '" + name + "' (known: auto, cpu, cuda, cuda:N)");
#ifdef KINORA_CUDA
  return cuda::why_unavailable().empty() ? 0 : -1;
#else
  return -1;
#endif
}

}  // namespace

Runtime make_runtime(const std::string& device, const std::string& dtype, int threads, const std::atomic<bool>* stop,
                     const std::string& attention) {
  constexpr const char* kAttention[] = {"auto", "flash", "cudnn", "math", "fp8"};
  if (std::find(std::begin(kAttention), std::end(kAttention), attention) == std::end(kAttention))
    fail(ErrorKind::usage, "unknown attention '" + attention + "' (known: auto, flash, cudnn, math, fp8)");
  int index = parse_device(device);
  Runtime runtime;
  runtime.dtype = parse_dtype(dtype, index >= 0);
  runtime.backend = &cpu::backend();
  if (index >= 0) {
#ifdef KINORA_CUDA
    runtime.backend = &cuda::backend();
    runtime.context.device = cuda::open_device(index);
#else
    fail(ErrorKind::resource, "this build has no CUDA backend; use --device cpu, or build with ./dev build cuda");
#endif
  }
  runtime.context.pool = std::make_shared<ThreadPool>(threads);
  runtime.context.arena = std::make_shared<Arena>(runtime.context.device);
  runtime.context.stop = stop;
  runtime.context.variant = attention;
  return runtime;
}

void prepare_weights(Weights& weights, const std::string& component, const Runtime& runtime) {
  if (weights.prepared()) return;
  const ExecutionContext& context = runtime.context;
  auto make_quantizer = runtime.backend->quantizer;
  quantize_weights(weights, component, runtime.quantization, *context.pool,
                   make_quantizer ? make_quantizer(context.device, context.pool) : Quantizer(), context.stop);
  weights.set_prepared();
  if (!runtime.backend->runnable) return;
  std::set<std::pair<QuantFormat, QuantFormat>> changes;
  for (const std::string& name : weights.names()) {
    std::optional<QuantFormat> format = weights.format(name);
    if (!format) continue;
    QuantFormat other = runtime.backend->runnable(*format);
    if (other == *format) continue;
    weights.set_format(name, other);
    changes.insert({*format, other});
  }
  for (auto [from, to] : changes) {
    log(LogLevel::warning, "this device has no products of " + std::string(quant_format_name(from)) + "; the " +
                               component + " runs with " + std::string(quant_format_name(to)));
  }
}

std::string device_name(const Runtime& runtime) { return runtime.context.device ? "cuda" : "cpu"; }

std::string dtype_name(const Runtime& runtime) {
  return runtime.dtype == DType::f32 ? "float32" : runtime.dtype == DType::bf16 ? "bfloat16" : "float16";
}

std::string attention_of(const Executable& executable) {
  std::string list;
  for (const auto& [variant, count] : executable.variants())
    list += (list.empty() ? "" : ", ") + variant + " " + std::to_string(count);
  return list.empty() ? "none" : list;
}

std::string describe(const Runtime& runtime) {
#ifdef KINORA_CUDA
  if (runtime.context.device) return cuda::description();
#endif
  return cpu::description() + ", " + std::to_string(runtime.context.pool->size()) + " threads";
}

size_t peak_device_memory(const Runtime& runtime) {
#ifdef KINORA_CUDA
  if (runtime.context.device) return cuda::memory_use(*runtime.context.device).peak;
#endif
  (void)runtime;
  return 0;
}

}  // namespace kinora
