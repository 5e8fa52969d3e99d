// What the GPU tests share. Without a GPU they skip and say why.
#pragma once

#include "cuda/backend.h"
#include "diffusion/backends.h"
#include "support.h"

#define KINORA_NEEDS_GPU()                                               \
  if (std::string why = kinora::cuda::why_unavailable(); !why.empty()) { \
    GTEST_SKIP() << why;                                                 \
  }

namespace kinora::test {

inline Runtime gpu_runtime(DType dtype = DType::f32) {
  Runtime runtime = make_runtime("cuda", "float32", 2, nullptr);
  runtime.dtype = dtype;
  return runtime;
}

inline std::map<std::string, Tensor> run_on_gpu(const Graph& graph, const std::map<std::string, Tensor>& inputs) {
  Runtime runtime = gpu_runtime();
  return compile(graph, *runtime.backend, runtime.context).run(inputs);
}

}  // namespace kinora::test
