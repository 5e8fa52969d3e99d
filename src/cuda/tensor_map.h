// The maps by which Hopper copies boxes of a matrix to shared memory.
#pragma once

#include <cuda.h>

#include "cuda/cuda.h"

namespace kinora::cuda {

bool has_tensor_maps();  // the driver makes them

// Of a matrix [rows, columns] of elements of 1 or 2 bytes in device memory, whose start and rows' bytes are multiples
// of 16, in boxes [box_rows, box_columns]; box_rows <= 256. Boxes with rows of 128 bytes are put in the 128-byte
// swizzle, others plain. Throws Error(internal).
CUtensorMap tensor_map(const void* matrix, int element_bytes, int rows, int columns, int box_rows, int box_columns);

}  // namespace kinora::cuda
