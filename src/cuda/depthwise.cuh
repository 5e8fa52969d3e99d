// What the kernels for one filter a channel share: words of channels, and how a picture is cut into strips.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/activation.cuh"

namespace kinora::cuda {

constexpr int kMostGrid = 65535;  // blocks along a grid's second and third axis
constexpr int kLanes = 32;        // neighbouring words of channels in a block
constexpr int kMostStrips = 4;    // neighbouring strips of columns in a block

// V neighbouring channels, kept as one register until they are used.
template <class T, int V>
struct Word;
template <class T>
struct Word<T, 1> {
  T bits{};
  __device__ float get(int) const { return to_float(bits); }
  __device__ void set(int, float value) { bits = from_float<T>(value); }
};
template <class T>
struct Word<T, 2> {
  unsigned bits = 0;
  __device__ float get(int v) const {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return __uint_as_float(v ? bits & 0xffff0000u : bits << 16);
    } else {
      T value;
      auto part = static_cast<unsigned short>(v ? bits >> 16 : bits & 0xffffu);
      memcpy(&value, &part, sizeof value);
      return to_float(value);
    }
  }
  __device__ void set(int v, float value) {
    T rounded = from_float<T>(value);
    unsigned short part;
    memcpy(&part, &rounded, sizeof part);
    bits |= static_cast<unsigned>(part) << (16 * v);
  }
};

// Cuts the height so that the rounds of blocks times the rows of each, with those read twice, are fewest.
inline int choose_rows(int height, int kernel, int most_strips, int64_t blocks_a_strip, int64_t blocks_at_once) {
  int best = height;
  int64_t best_cost = 0;
  for (int strips = 1; strips <= std::min(height, most_strips); ++strips) {
    int rows = static_cast<int>(ceil_div(height, strips));
    int64_t cost = ceil_div(blocks_a_strip * ceil_div(height, rows), blocks_at_once) * (rows + kernel - 1);
    if (strips == 1 || cost < best_cost) {
      best = rows;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace kinora::cuda
