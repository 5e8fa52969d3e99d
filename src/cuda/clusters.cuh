// Clusters of blocks, which run at the same time and read each other's shared memory: compute capability 9.0 and later
// (CUDA programming guide, "Thread Block Clusters").
#pragma once

#include "cuda/launch.cuh"

namespace kinora::cuda {

// As start_kernel; the grid's x is a multiple of `cluster`, at most 8, and so many neighbours along it make a cluster.
template <class... Parameters, class... Arguments>
void start_clusters(void (*kernel)(Parameters...), unsigned cluster, dim3 grid, size_t threads, size_t shared,
                    cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

#if __CUDA_ARCH__ >= 900

// For all threads of a cluster: what each wrote to shared memory before it arrived is there after the wait.
__device__ inline void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ inline void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Two floats of block `rank` of the cluster, at what is `address` in this block's shared memory.
__device__ inline float2 load_from_block(uint32_t address, uint32_t rank) {
  uint32_t there;
  float2 two;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(two.x), "=f"(two.y) : "r"(there) : "memory");
  return two;
}

#endif

}  // namespace kinora::cuda
