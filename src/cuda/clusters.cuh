// Clusters of blocks (start_clusters), at most eight, which run at the same time and read each other's shared memory:
// compute capability 9.0 and later (CUDA programming guide, "Thread Block Clusters").
#pragma once

#include "cuda/launch.cuh"

namespace kinora::cuda {

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
