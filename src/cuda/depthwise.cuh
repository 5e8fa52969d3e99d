// What the kernels for one filter a channel share: words of channels, and how a picture is cut into strips.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/activation.cuh"
#include "cuda/epilogue.h"

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

struct Depthwise {
  const void *x, *w, *bias;  // bias may be null
  void* y;
  DType weight_type, bias_type;
  Act act;
  int height, width, channels;  // of x
  int64_t image, line;          // elements from one to the next in x, as pixel; so of w: filter, filter_line
  int pixel;
  int64_t filter, filter_line;
  int out_height, out_width;
  int kernel_height, kernel_width, stride, padding;
  int rows;           // of a strip
  int column_groups;  // blocks beside each other in one row of the picture
};

inline Depthwise with_pointers(Depthwise a, const StepArgs& args) {
  a.x = args.in[0];
  a.w = args.in[1];
  a.bias = args.in.size() == 3 ? args.in[2] : nullptr;
  a.y = args.out;
  return a;
}

// depthwise_tile.cu: 16-bit types, square filters of 3, 5 or 7 with a stride of 1.
bool depthwise_tiles_take(const Depthwise& a);
Step make_depthwise_tiles(const Depthwise& a, const StepSpec& spec);

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
