// How a kernel finds its inputs' elements: axes merged where every tensor allows it, strides per tensor.
#pragma once

#include <algorithm>
#include <cstdint>

#include "graph/executable.h"

namespace kinora::cuda {

constexpr int kMaxAxes = 6;

// An index space of up to six axes, the last one innermost, and `N` tensors' strides in it.
template <int N>
struct Layout {
  int rank = 0;
  int64_t count = 1;
  uint32_t extents[kMaxAxes] = {};
  int64_t strides[N][kMaxAxes] = {};

#ifdef __CUDACC__
  // Elements from each tensor's start, for the linear index of a result element.
  __device__ void offsets(uint32_t index, int64_t (&out)[N]) const {
#pragma unroll
    for (int t = 0; t < N; ++t) out[t] = 0;
#pragma unroll
    for (int axis = kMaxAxes - 1; axis >= 0; --axis) {
      if (axis >= rank) continue;
      uint32_t next = axis > 0 ? index / extents[axis] : 0, at = index - next * extents[axis];
#pragma unroll
      for (int t = 0; t < N; ++t) out[t] += at * strides[t][axis];
      index = next;
    }
  }
#endif
};

// Strides of a tensor in the index space of `shape`, which it broadcasts to.
inline Ints broadcast_strides(const Shape& shape, const Shape& from, const Ints& strides) {
  Ints result(static_cast<size_t>(shape.rank()), 0);
  int extra = shape.rank() - from.rank();
  for (int axis = 0; axis < from.rank(); ++axis) {
    if (from[axis] != 1) result[static_cast<size_t>(axis + extra)] = strides[static_cast<size_t>(axis)];
  }
  return result;
}

// Merges axes; throws Error(internal) when more than six are left or the space has 2^32 elements or more.
template <int N>
Layout<N> make_layout(std::span<const int64_t> extents, const std::array<Ints, N>& strides) {
  Layout<N> layout;
  int64_t merged[Shape::kMaxRank * 2] = {};
  int64_t steps[N][Shape::kMaxRank * 2] = {};
  int rank = 0;
  for (size_t axis = 0; axis < extents.size(); ++axis) {
    layout.count *= extents[axis];
    if (extents[axis] == 1) continue;
    bool joins = rank > 0;
    for (int t = 0; t < N && joins; ++t) joins = steps[t][rank - 1] == strides[size_t(t)][axis] * extents[axis];
    if (!joins) ++rank;
    merged[rank - 1] = joins ? merged[rank - 1] * extents[axis] : extents[axis];
    for (int t = 0; t < N; ++t) steps[t][rank - 1] = strides[size_t(t)][axis];
  }
  if (rank > kMaxAxes || layout.count >= (int64_t{1} << 32)) {
    fail(ErrorKind::internal, "a tensor's layout is beyond what CUDA kernels here index");
  }
  layout.rank = rank;
  for (int axis = 0; axis < rank; ++axis) {
    layout.extents[axis] = static_cast<uint32_t>(merged[axis]);
    for (int t = 0; t < N; ++t) layout.strides[t][axis] = steps[t][axis];
  }
  return layout;
}

// The largest power of two, at most `most`, by which groups of neighbouring elements can be taken: the innermost axis
// divides by it, and each tensor is contiguous or constant along it, with other strides that are its multiples.
template <int N>
int group_size(const Layout<N>& layout, int most) {
  if (layout.rank == 0) return 1;
  int last = layout.rank - 1, group = most;
  while (group > 1) {
    bool fits = layout.extents[last] % static_cast<uint32_t>(group) == 0;
    for (int t = 0; t < N && fits; ++t) {
      fits = layout.strides[t][last] == 0 || layout.strides[t][last] == 1;
      for (int axis = 0; axis < last && fits; ++axis) fits = layout.strides[t][axis] % group == 0;
    }
    if (fits) return group;
    group /= 2;
  }
  return 1;
}

}  // namespace kinora::cuda
