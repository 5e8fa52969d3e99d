// From a warp's int32 sums to the rows of a result, through a little shared memory: lanes come to hold eight
// neighbouring columns, which they read and write with whole instructions.
#pragma once

#include "cuda/int8_kernels.h"
#include "cuda/int8_tiles.h"
#include "cuda/product_finish.cuh"

namespace kinora::cuda {

// Eight neighbours, 16-byte aligned.
template <class T>
struct Eight {
  Pack<T> packs[8 / Pack<T>::kSize];

  __device__ static Eight load(const T* from) {
    Eight e;
#pragma unroll
    for (int i = 0; i < 8 / Pack<T>::kSize; ++i) e.packs[i] = load_pack(from + i * Pack<T>::kSize);
    return e;
  }
  __device__ void floats(float (&to)[8]) const {
#pragma unroll
    for (int v = 0; v < 8; ++v) to[v] = to_float(packs[v / Pack<T>::kSize].values[v % Pack<T>::kSize]);
  }
};

__device__ inline void load_eight(const void* values, DType dtype, int64_t at, float (&to)[8]) {
  switch (dtype) {
    case DType::f16: return Eight<__half>::load(static_cast<const __half*>(values) + at).floats(to);
    case DType::bf16: return Eight<__nv_bfloat16>::load(static_cast<const __nv_bfloat16*>(values) + at).floats(to);
    default: return Eight<float>::load(static_cast<const float*>(values) + at).floats(to);
  }
}

// Of one warp. A block is 16 rows of 32 columns; a lane finishes, in two of its rows, 8 columns.
template <class T>
class SumsFinish {
 public:
  __device__ explicit SumsFinish(const Int8Arguments& p) : p_(p), lane_(threadIdx.x % 32) {}

  __device__ void begin_rows(int row) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      rows_[i] = row + static_cast<int>(lane_ / 4) + 8 * i;
      bool there = rows_[i] < p_.m;
      row_scale_[i] = there ? p_.data.row_scale[rows_[i]] : 0.0f;
      int64_t gate[1] = {0};
      if (p_.data.gate && there) p_.finish.gates.offsets(static_cast<uint32_t>(rows_[i]), gate);
      gate_[i] = gate[0];
    }
  }

  // What meets the sums of a block, but for gates.
  struct Beside {
    int column;
    bool there;
    float column_scale[8], bias[8];
    Eight<T> residual[2];
  };
  // Of the block whose columns begin here and end before `end`: loads that can be under way while other work is done.
  __device__ void load(Beside& beside, int column, int end) const {
    beside.column = column + static_cast<int>(lane_) % 4 * 8;
    beside.there = beside.column < end;
    if (!beside.there) return;
    load_eight(p_.data.column_scale, DType::f32, beside.column, beside.column_scale);
    if (p_.data.bias) load_eight(p_.data.bias, p_.finish.bias_type, beside.column, beside.bias);
    if (!p_.data.residual) return;
    const T* residual = static_cast<const T*>(p_.data.residual) + beside.column;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (rows_[i] < p_.m) beside.residual[i] = Eight<T>::load(residual + int64_t{rows_[i]} * p_.n);
    }
  }

  // The sums of 8 of a block's columns, as mma gives them. `staging`: kStagedWords of shared memory that the warp alone
  // uses.
  __device__ void stage(int32_t* staging, const int32_t (&sums)[4], uint32_t eighth) const {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      *reinterpret_cast<int2*>(staging + staged_pair(lane_, eighth, i)) = make_int2(sums[2 * i], sums[2 * i + 1]);
    }
  }

  // Of a block whose sums are all staged, by lanes that have met since (__syncwarp).
  __device__ void finish(const int32_t* staging, const Beside& beside) const {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      uint32_t odd = lane_ / 4 % 2;
      int4 first = *reinterpret_cast<const int4*>(staging + staged_half(lane_, i, odd));
      int4 second = *reinterpret_cast<const int4*>(staging + staged_half(lane_, i, 1 - odd));
      int4 low = odd ? second : first, high = odd ? first : second;
      const int32_t sums[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      if (beside.there && rows_[i] < p_.m) finish_row(beside, i, sums);
    }
  }

 private:
  __device__ void finish_row(const Beside& beside, uint32_t i, const int32_t (&sums)[8]) const {
    float y[8];
    Finishing<8> with{.scaled = true,
                      .biased = p_.data.bias != nullptr,
                      .gated = p_.data.gate != nullptr,
                      .added = p_.data.residual != nullptr};
    with.row_scale = row_scale_[i];
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      y[v] = static_cast<float>(sums[v]);
      with.column_scale[v] = beside.column_scale[v];
      with.bias[v] = beside.bias[v];
    }
    if (with.gated) {
      const T* gate = static_cast<const T*>(p_.data.gate) + gate_[i] + beside.column;
      if (p_.gate_packs) {
        Eight<T>::load(gate).floats(with.gate);
      } else {
#pragma unroll
        for (int v = 0; v < 8; ++v) with.gate[v] = to_float(gate[v]);
      }
    }
    if (with.added) beside.residual[i].floats(with.residual);
    finish_values<T>(y, with, p_.finish.act);
    T* out = static_cast<T*>(p_.data.out) + int64_t{rows_[i]} * p_.finish.out_row + beside.column;
#pragma unroll
    for (int pack = 0; pack < 8 / Pack<T>::kSize; ++pack) {
      Pack<T> result;
#pragma unroll
      for (int v = 0; v < Pack<T>::kSize; ++v) result.values[v] = from_float<T>(y[pack * Pack<T>::kSize + v]);
      store_pack(out + pack * Pack<T>::kSize, result);
    }
  }

  const Int8Arguments& p_;
  uint32_t lane_;
  int rows_[2];
  float row_scale_[2];
  int64_t gate_[2];
};

}  // namespace kinora::cuda
