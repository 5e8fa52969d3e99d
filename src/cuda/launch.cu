#include "cuda/launch.cuh"

namespace kinora::cuda {
namespace {

__global__ void any_kernel() { begin_kernel(); }

}  // namespace

bool begins_early() {
  static const bool early = [] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, any_kernel));
    return attributes.ptxVersion >= 90 && device_limits().major >= 9;
  }();
  return early;
}

}  // namespace kinora::cuda
