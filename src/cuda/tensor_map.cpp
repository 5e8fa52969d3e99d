#include "cuda/tensor_map.h"

#include <array>
#include <string>

#include "cuda/cuda.h"

namespace kinora::cuda {
namespace {

using Encode = decltype(cuTensorMapEncodeTiled);

// The driver's own function, which the program is not linked to; null where there is none.
Encode* encode() {
  static Encode* const function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) {
      cudaGetLastError();
      found = nullptr;
    }
    return reinterpret_cast<Encode*>(found);
  }();
  return function;
}

}  // namespace

bool makes_tensor_maps() { return encode() != nullptr; }

CUtensorMap tensor_map(CUtensorMapDataType type, const void* base, std::span<const cuuint64_t> extents,
                       std::span<const cuuint64_t> strides, std::span<const cuuint32_t> box) {
  static constexpr std::array<cuuint32_t, 5> kSteps{1, 1, 1, 1, 1};
  CUtensorMap map;
  CUresult result =
      encode()(&map, type, static_cast<cuuint32_t>(extents.size()), const_cast<void*>(base), extents.data(),
               strides.data(), box.data(), kSteps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    std::string shape;
    for (cuuint64_t extent : extents) shape += " " + std::to_string(extent);
    fail(ErrorKind::internal,
         "the driver makes no map of a tensor of" + shape + ": error " + std::to_string(static_cast<int>(result)));
  }
  return map;
}

}  // namespace kinora::cuda
