#include "cuda/tensor_map.h"

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

bool has_tensor_maps() { return encode() != nullptr; }

CUtensorMap tensor_map(const void* matrix, int element_bytes, int rows, int columns, int box_rows, int box_columns) {
  CUtensorMap map;
  cuuint64_t extents[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  cuuint64_t row_bytes[] = {static_cast<cuuint64_t>(columns) * static_cast<cuuint64_t>(element_bytes)};
  cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  bool swizzled = box_columns * element_bytes == 128;
  CUresult result =
      encode()(&map, element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, 2,
               const_cast<void*>(matrix), extents, row_bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail(ErrorKind::internal, "the driver makes no map of a matrix [" + std::to_string(rows) + ", " +
                                  std::to_string(columns) + "]: error " + std::to_string(static_cast<int>(result)));
  }
  return map;
}

}  // namespace kinora::cuda
