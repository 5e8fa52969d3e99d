// From a warp's sums to the rows of a result. What is done to them happens where they are; 16-bit results then pass
// through a little shared memory to lanes that write eight neighbouring columns at once.
#pragma once

#include "cuda/codes_kernels.h"
#include "cuda/codes_tiles.h"
#include "cuda/mma.cuh"
#include "cuda/product_finish.cuh"

namespace kinora::cuda {

// The compiler may not know a sum from before this.
__device__ inline void forget(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }
__device__ inline void forget(int32_t& sum) { asm volatile("" : "+r"(sum)::"memory"); }

// The sums of 32 columns from among those of more, the `block`th, which registers cannot be asked for by number.
template <int kEighths, class Sum>
__device__ inline void take_block(const Sum (&sums)[kEighths][4], int block, float (&to)[4][4]) {
  Sum taken[4][4];
#pragma unroll
  for (int i = 0; i < (kEighths + 3) / 4; ++i) {
    if (i != block) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int v = 0; v < 4; ++v) taken[j][v] = sums[4 * i + j < kEighths ? 4 * i + j : 0][v];
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
#pragma unroll
    for (int v = 0; v < 4; ++v) {
      forget(taken[j][v]);  // else all would become floats before a loop over blocks, and not fit into registers
      to[j][v] = static_cast<float>(taken[j][v]);
    }
  }
}

// Of one warp and its 16 rows of a tile, 32 columns (a block) after the other; of a block's sums, as mma gives them, a
// lane has pairs of columns 8 j on in two rows.
template <class T>
class SumsFinish {
 public:
  // `staging`: kStagedBytes of shared memory, aligned as much, that the warp alone uses.
  __device__ SumsFinish(const CodesArguments& p, uint32_t staging)
      : p_(p),
        lane_(threadIdx.x % 32),
        pair_at_(staging + staged_pair(lane_, 0, 0)),
        eight_at_(staging + staged_eight(lane_, 0)) {}

  // Of the tile's columns [column, end).
  __device__ void begin(int row, int column, int end) {
    width_ = end - column;
    int pair = column + static_cast<int>(lane_) % 4 * 2,
        first = sizeof(T) == 4 ? pair : column + static_cast<int>(lane_) % 4 * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int at = row + static_cast<int>(lane_ / 4) + 8 * i;
      there_[i] = at < p_.m;
      if (!there_[i]) at = 0;
      row_scale_[i] = p_.data.row_scale[at];
      out_[i] = static_cast<T*>(p_.data.out) + int64_t{at} * p_.finish.out_row + first;
      if (p_.data.residual) residual_[i] = static_cast<const T*>(p_.data.residual) + int64_t{at} * p_.n + first;
      if (!p_.data.gate) continue;
      int64_t gate[1];
      p_.finish.gates.offsets(static_cast<uint32_t>(at), gate);
      gate_[i] = static_cast<const T*>(p_.data.gate) + gate[0] + pair;
    }
  }

  // The residual that meets a block: of the lane's pairs (float) or eights.
  struct Beside {
    std::conditional_t<sizeof(T) == 4, float2, uint4> residual[2][sizeof(T) == 4 ? 4 : 1];
  };
  // Loads that can be under way while other work is done.
  __device__ void load(Beside& beside, int block) const {
    if (!p_.data.residual) return;
    constexpr int kPieces = sizeof(T) == 4 ? 4 : 1;
    int first = sizeof(T) == 4 ? 0 : static_cast<int>(lane_) % 4 * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        int at = 32 * block + 8 * j;
        auto& piece = beside.residual[i][j];
        piece = {};
        if (there_[i] && at + first < width_) {
          piece = *reinterpret_cast<const std::remove_reference_t<decltype(piece)>*>(residual_[i] + at);
        }
      }
    }
  }

  // `columns` gives the scales and the bias of the lane's pair of the tile's columns 8 j on: scale(j), bias(j). kGated,
  // kAdded: there may be a gate, a residual; the residual is here of this block and then of the next. `act`: the
  // product's.
  template <bool kGated, bool kAdded, class Columns>
  __device__ void finish(const float (&sums)[4][4], Beside& beside, const Columns& columns, int block, Act act) const {
    Finishing<8> with{.scaled = true,
                      .biased = p_.data.bias != nullptr,
                      .gated = kGated && p_.data.gate != nullptr,
                      .added = kAdded && p_.data.residual != nullptr};
#pragma unroll
    for (int j = 0; j < 4; ++j) put(columns.scale(4 * block + j), with.column_scale, j);
    if (with.biased) {
#pragma unroll
      for (int j = 0; j < 4; ++j) put(columns.bias(4 * block + j), with.bias, j);
    }
    if (with.added) stage_residual(beside, block);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float y[8];
      with.row_scale = row_scale_[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        put(make_float2(sums[j][2 * i], sums[j][2 * i + 1]), y, j);
        if (with.added) put(staged_residual(beside, i, j), with.residual, j);
        if (with.gated && 32 * block + 8 * j < width_) {
          const T* gate = gate_[i] + 32 * block + 8 * j;
          put(make_float2(to_float(gate[0]), to_float(gate[1])), with.gate, j);
        }
      }
      finish_values<T>(y, with, act);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (sizeof(T) == 4) {
          bool inside = there_[i] && 32 * block + 8 * j < width_;
          if (inside) *reinterpret_cast<float2*>(out_[i] + 32 * block + 8 * j) = make_float2(y[2 * j], y[2 * j + 1]);
        } else {
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(pair_at(j, i)), "r"(Pair<T>::of(y[2 * j], y[2 * j + 1]))
                       : "memory");
        }
      }
    }
    if constexpr (sizeof(T) == 2) write(block);
    if (sizeof(T) == 4 && with.added) load(beside, block + 1);
  }

 private:
  __device__ static void put(float2 two, float (&to)[8], int j) {
    to[2 * j] = two.x;
    to[2 * j + 1] = two.y;
  }
  // staged_pair(lane, j, i): what j changes is an exclusive or.
  __device__ uint32_t pair_at(int j, int i) const { return (pair_at_ ^ (16 * j)) + 512 * i; }

  // 16-bit residuals come by way of shared memory to where the sums are, and those of the next block set out.
  __device__ void stage_residual(Beside& beside, int block) const {
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4& eight = beside.residual[i][0];
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(eight_at_ + 512 * i), "r"(eight.x), "r"(eight.y),
                     "r"(eight.z), "r"(eight.w)
                     : "memory");
      }
      load(beside, block + 1);
      __syncwarp();
    }
  }
  __device__ float2 staged_residual(const Beside& beside, int i, int j) const {
    if constexpr (sizeof(T) == 4) {
      return beside.residual[i][j];
    } else {
      uint32_t two;
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(two) : "r"(pair_at(j, i)) : "memory");
      return Pair<T>::floats(two);
    }
  }

  __device__ void write(int block) const {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint4 eight;
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(eight.x), "=r"(eight.y), "=r"(eight.z), "=r"(eight.w)
                   : "r"(eight_at_ + 512 * i)
                   : "memory");
      bool inside = 32 * block + static_cast<int>(lane_) % 4 * 8 < width_;
      if (there_[i] && inside) *reinterpret_cast<uint4*>(out_[i] + 32 * block) = eight;
    }
    __syncwarp();
  }

  const CodesArguments& p_;
  uint32_t lane_, pair_at_, eight_at_;
  int width_ = 0;
  bool there_[2];
  float row_scale_[2];
  // Of the lane's pair (float) or eight columns; the gate's always of its pair.
  T* out_[2];
  const T *residual_[2], *gate_[2];
};

}  // namespace kinora::cuda
