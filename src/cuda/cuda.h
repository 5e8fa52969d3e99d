// What every file of this room shares: checked calls, the stream of a step, choosing a kernel's element type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <source_location>

#include "graph/executable.h"

namespace kinora::cuda {

// Throws Error(internal), or Error(resource) when memory ran out, naming the call's file and line.
void check(cudaError_t status, std::source_location where = std::source_location::current());

inline cudaStream_t stream_of(const StepArgs& args) { return static_cast<cudaStream_t>(args.queue); }

// Calls f with a value of the CUDA type of that dtype: float, __half or __nv_bfloat16.
template <class F>
auto with_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32: return f(float{});
    case DType::f16: return f(__half{});
    case DType::bf16: return f(__nv_bfloat16{});
    default: fail(ErrorKind::internal, "no CUDA kernel computes on " + std::string(dtype_name(dtype)));
  }
}

// Of the current device.
struct DeviceLimits {
  int multiprocessors = 0, major = 0, minor = 0;
  size_t shared_bytes = 0;  // that one block may ask for
};
const DeviceLimits& device_limits();

}  // namespace kinora::cuda
