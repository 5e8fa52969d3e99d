// The kernels behind CodesProduct.
#pragma once

#include "cuda/product_finish.h"

namespace kinora::cuda {

struct CodesArguments {
  DType codes = DType::i8;     // i8 or f8_e4m3
  ProductFinish finish;        // with out_row
  ProductFinish::Data data{};  // sums, rows and first_row are not used
  const int8_t *x = nullptr, *w = nullptr;
  int m = 0, n = 0, k = 0;
  int tile_rows = 0, tile_columns = 0;  // how many there are; the kernel's own
};

// Enqueues the product of these arguments.
using CodesLaunch = void(cudaStream_t stream, const CodesArguments& arguments);

// What makes products of these sizes and types; the kernel is made ready, so that streams can be recorded. Null: not
// this one.
CodesLaunch* prepare_int8_mma(const CodesArguments& arguments);     // int8_mma.cu; sm_80 and later
CodesLaunch* prepare_codes_wgmma(const CodesArguments& arguments);  // codes_wgmma.cu
bool codes_wgmma_runs(const DeviceLimits& limits);                  // sm_90, in builds for sm_90a

}  // namespace kinora::cuda
