// The kernels behind Int8Product.
#pragma once

#include "cuda/product_finish.h"

namespace kinora::cuda {

struct Int8Arguments {
  ProductFinish finish;        // with out_row
  ProductFinish::Data data{};  // sums, rows and first_row are not used
  const int8_t *x = nullptr, *w = nullptr;
  int m = 0, n = 0, k = 0;
  int tile_rows = 0, tile_columns = 0;  // how many there are; the kernel's own
  bool gate_packs = false;              // eight neighbours of a gate can be read as one
};

// Enqueues the product of these arguments.
using Int8Launch = void(cudaStream_t stream, const Int8Arguments& arguments);

// What makes products of these sizes and this type; the kernel is made ready, so that streams can be recorded.
Int8Launch* prepare_int8_mma(const Int8Arguments& arguments);    // int8_mma.cu; sm_80 and later
Int8Launch* prepare_int8_wgmma(const Int8Arguments& arguments);  // int8_wgmma.cu
bool int8_wgmma_runs(const DeviceLimits& limits);                // sm_90, in builds for sm_90a

}  // namespace kinora::cuda
