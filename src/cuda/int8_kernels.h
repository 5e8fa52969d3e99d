// The kernels behind Int8Product.
#pragma once

#include "cuda/product_finish.h"

namespace kinora::cuda {

struct Int8Arguments {
  ProductFinish finish;      // with out_row
  ProductFinish::Data data;  // sums, rows and first_row are not used
  const int8_t *x, *w;
  int m, n, k;
  int tile_rows = 0, tile_columns = 0;  // how many there are: the kernel's own
  bool gate_packs;                      // where eight neighbours of a gate can be read as one
};

void enqueue_int8_mma(cudaStream_t stream, const Int8Arguments& arguments);  // int8_mma.cu; sm_80 and later
// int8_wgmma.cu: one tile for each block, or pairs of blocks that share what they read of the weight.
void enqueue_int8_wgmma(cudaStream_t stream, const Int8Arguments& arguments);
void enqueue_int8_wgmma_pairs(cudaStream_t stream, const Int8Arguments& arguments);
bool int8_wgmma_runs(const DeviceLimits& limits);  // sm_90, in builds for sm_90a

}  // namespace kinora::cuda
