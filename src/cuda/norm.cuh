// What kernels of norms share: a group of threads has a row, a pack or an element of it at a time.
#pragma once

#include "cuda/quantize.cuh"

namespace kinora::cuda {

constexpr int kNormThreads = 128;
// Of a block in which `lanes` threads share a row.
constexpr int block_size(int lanes) { return kNormThreads % lanes == 0 ? kNormThreads : lanes; }

// The first of run<Groups, Lanes>() that is true, from narrow rows to wide ones: a row is `Groups` packs or elements of
// each of `Lanes` threads. False when none is.
template <class Run>
bool first_that_fits(const Run& run) {
  return run.template operator()<1, 8>() || run.template operator()<1, 16>() || run.template operator()<2, 16>() ||
         run.template operator()<2, 32>() || run.template operator()<2, 64>() || run.template operator()<3, 64>() ||
         run.template operator()<2, 128>() || run.template operator()<3, 96>() || run.template operator()<3, 128>() ||
         run.template operator()<4, 128>() || run.template operator()<6, 128>() || run.template operator()<8, 128>();
}

// Sum over `Lanes` neighbouring threads; more than a warp goes through shared memory, of each sum its own: a float for
// each of the block's warps.
template <int Lanes>
__device__ float lanes_sum(float x, float* shared) {
  constexpr int kWidth = Lanes < 32 ? Lanes : 32;
  for (int offset = kWidth / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if constexpr (Lanes > 32) {
    constexpr int kWarps = Lanes / 32;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    int first = static_cast<int>(threadIdx.x) / Lanes * kWarps;
    for (int i = 0; i < kWarps; ++i) x += shared[first + i];
  }
  return x;
}

// One element, or a pack of them as words, which take half the registers of numbers.
template <class T, int Group>
using Held = std::conditional_t<Group == 1, T, uint4>;

template <class T, int Group>
__device__ Held<T, Group> hold(const T* address) {
  return *reinterpret_cast<const Held<T, Group>*>(address);
}

template <class T, int Group>
__device__ void numbers_of(const Held<T, Group>& held, float (&out)[Group]) {
  if constexpr (Group == 1) {
    out[0] = to_float(held);
  } else {
    unpack<T>(held, out);
  }
}

template <class T, int Group>
__device__ void read_group(const T* address, float (&out)[Group]) {
  numbers_of<T, Group>(hold<T, Group>(address), out);
}

template <class T, int Group>
__device__ void write_group(T* address, const float (&y)[Group]) {
  struct alignas(sizeof(T) * Group) Few {
    T values[Group];
  } few;
#pragma unroll
  for (int i = 0; i < Group; ++i) few.values[i] = from_float<T>(y[i]);
  *reinterpret_cast<Few*>(address) = few;
}

}  // namespace kinora::cuda
