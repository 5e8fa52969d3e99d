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

// Enqueues a kernel that calls begin_kernel(). `cluster`, when not 0: so many neighbours along the grid's x, which is a
// multiple of it, make a cluster (clusters.cuh).
template <class... Parameters, class... Arguments>
void start_clusters(void (*kernel)(Parameters...), unsigned cluster, dim3 grid, size_t threads, size_t shared,
                    cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  unsigned count = 0;
  if (begins_early()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (cluster > 0) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {cluster, 1, 1};
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

template <class... Parameters, class... Arguments>
void start_kernel(void (*kernel)(Parameters...), dim3 grid, size_t threads, size_t shared, cudaStream_t stream,
                  Arguments&&... arguments) {
  start_clusters(kernel, 0, grid, threads, shared, stream, std::forward<Arguments>(arguments)...);
}

}  // namespace kinora::cuda
