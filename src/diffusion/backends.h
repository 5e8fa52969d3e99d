// Choosing where a session runs: the one place that knows which backends this build has.
#pragma once

#include <memory>
#include <string>

#include "graph/executable.h"
#include "nn/quantize.h"

namespace kinora {

// What all components of a session share.
struct Runtime {
  const Backend* backend = nullptr;
  ExecutionContext context;
  DType dtype = DType::f32;        // of activations: f32, bf16 or f16
  Quantization quantization = {};  // of weights, while they are loaded
};

// `device`: "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:N"; `dtype`: "auto" (float32 on the CPU, bfloat16
// on a GPU), "float32", "bfloat16" or "float16"; `threads` 0: one per physical core. Throws Error(usage) for a name
// that is not known, Error(resource) with what is missing when a GPU was asked for and cannot be used. `attention`:
// which kernels compute softmax attention, "auto", "flash" (our own), "cudnn", "math" (products and softmax one after
// another, in float32) or "fp8" (cuDNN's, of 8-bit codes: less exact, and never chosen by "auto"); where the one asked
// for cannot, another does.
Runtime make_runtime(const std::string& device, const std::string& dtype, int threads, const std::atomic<bool>* stop,
                     const std::string& attention = "auto");

// As --device and --dtype name them, without the number of a GPU.
std::string device_name(const Runtime& runtime);
std::string dtype_name(const Runtime& runtime);

// "flash 24, linear 20": which kernels compute how many of a component's attentions; "none" where it has none.
std::string attention_of(const Executable& executable);

// Quantizes a component's weights if the runtime says so, and lets weights whose format the device lacks be read in one
// that it has, with a warning. Does nothing when it has been done. Components call it before their first graph.
void prepare_weights(Weights& weights, const std::string& component, const Runtime& runtime);

// One line about the device that the runtime uses.
std::string describe(const Runtime& runtime);

// Bytes that the runtime's device holds at most so far; 0 on the CPU.
size_t peak_device_memory(const Runtime& runtime);

}  // namespace kinora
