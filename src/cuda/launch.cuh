// Kernels that begin while the one before them ends (CUDA programming guide, "Programmatic Dependent Launch").
#pragma once

#include "cuda/cuda.h"

namespace kinora::cuda {

// Whether this build's code for the current device waits where begin_kernel() says so. Code for older GPUs, which the
// driver may translate, does not.
bool begins_early();  // launch.cu

// For each thread of a kernel that start_kernel() starts, before it touches memory that other kernels write or read:
// until all that came before is done. From here on the next kernel may begin. What it reads was not yet written when it
// began: no __ldg, whose memory must not change while a kernel runs.
__device__ inline void begin_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n\tgriddepcontrol.wait;" ::: "memory");
#endif
}

// Enqueues a kernel that calls begin_kernel().
template <class... Parameters, class... Arguments>
void start_kernel(void (*kernel)(Parameters...), dim3 grid, size_t threads, size_t shared, cudaStream_t stream,
                  Arguments&&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = begins_early() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

}  // namespace kinora::cuda
