// Products of floats with coded weights that are decoded where they are multiplied, in registers: the very numbers that
// Decoder gives, float32 sums, then what ProductFinish does to them.
#pragma once

#include <optional>

#include "core/quantize.h"
#include "cuda/product_finish.h"

namespace kinora::cuda {

struct CodedWeight {
  const void *codes, *scale;
  const float* scale_2;  // nvfp4's
};

struct CodedArguments {
  ProductFinish finish;        // with out_row
  ProductFinish::Data data{};  // sums, scales, rows and first_row are not used
  CodedWeight weight{};
  const void* x = nullptr;
  int m = 0, n = 0, k = 0;
  int tile_rows = 0, tile_columns = 0;  // how many there are, along n and along m; the kernel's own
  bool gate_packs = false;              // eight neighbours of a gate can be read as one
};
using CodedLaunch = void(cudaStream_t stream, const CodedArguments& arguments);

// coded_wgmma.cu; on sm_90, in builds for sm_90a. The kernel is made ready, so that streams can be recorded.
CodedLaunch* prepare_coded_wgmma(QuantFormat format, const CodedArguments& arguments);
bool coded_wgmma_runs(const DeviceLimits& limits);

class CodedProduct {
 public:
  // out [m, n] = finish(x [m, k] · wᵀ), w [n, k] in a format that leaves x as it is. Of `finish`: the type, which is
  // also x's, bias, activation and rows of the result; `sums` is not looked at.
  CodedProduct(QuantFormat format, int64_t m, int64_t n, int64_t k, const ProductFinish& finish);

  // False where no kernel takes this: the type is f32, n or the rows of the result are no multiples of 8, k none of 64.
  bool available() const { return launch_ != nullptr; }

  // All on the device, 16-byte aligned; of `data`, `sums`, scales, `rows` and `first_row` are not looked at.
  void enqueue(cudaStream_t stream, const void* x, const CodedWeight& weight, const ProductFinish::Data& data) const;

 private:
  CodedArguments arguments_;
  CodedLaunch* launch_ = nullptr;
};

// For tests and bench_steps --coded alone: whether these products are available at all.
extern std::optional<bool> coded_product_override;
bool coded_kernel_runs();  // on the current device

}  // namespace kinora::cuda
