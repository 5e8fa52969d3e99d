// The maps by which Hopper's copies find boxes of a tensor (CUDA driver API, "Tensor Map Object Management").
#pragma once

#include <cuda.h>

#include <span>

namespace kinora::cuda {

// False where the driver has no function for it.
bool makes_tensor_maps();

// Of elements at `base` with these extents, the innermost first, and strides of all other axes in bytes, multiples of
// 16; copied in boxes of 128 bytes along the innermost axis, in the 128-byte swizzle. Error: internal, the driver
// refuses.
CUtensorMap tensor_map(CUtensorMapDataType type, const void* base, std::span<const cuuint64_t> extents,
                       std::span<const cuuint64_t> strides, std::span<const cuuint32_t> box);

}  // namespace kinora::cuda
