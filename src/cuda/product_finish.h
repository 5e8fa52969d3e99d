// What follows a product of codes: scales, bias, activation, gate and residual, in float32 and rounded once.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/layout.h"

namespace kinora::cuda {

struct ProductFinish {
  DType sums = DType::f32;  // f32, i32 or what `dtype` is
  DType dtype = DType::f32, bias_type = DType::f32;
  Act act = Act::none;
  int64_t columns = 0;
  int64_t sums_row = 0, out_row = 0;  // elements from one row to the next; 0: columns
  bool gated = false;                 // there is a gate
  Layout<1> gates{};                  // where that of each row begins

  // Null pointers: not there. `residual` and `out` [rows, columns] and `sums` may be the same memory, when types and
  // rows are alike; `first_row`: of the result, which the gates belong to. All of device memory, 16-byte aligned but
  // for the gate, and so are rows that lie apart.
  struct Data {
    const void* sums;
    const float *row_scale, *column_scale;
    const void *bias, *gate, *residual;
    void* out;
    int64_t rows, first_row;
  };
  void enqueue(cudaStream_t stream, const Data& data) const;
};

}  // namespace kinora::cuda
