// Where the vectors of a [batch, tokens, heads, dim] tensor lie, which may be a slice of a larger one.
#pragma once

#include "cuda/cuda.h"
#include "graph/views.h"

namespace kinora::cuda {

struct HeadStrides {
  int64_t batch = 0, token = 0, head = 0;  // in elements
};

#ifdef __CUDACC__
template <class T>
__device__ inline const T* head_of(const void* base, const HeadStrides& at, int batch, int head) {
  return static_cast<const T*>(base) + batch * at.batch + head * at.head;
}
#endif

inline Ints strides_of(const StepSpec& spec, size_t input) {
  return input < spec.strides.size() ? spec.strides[input] : contiguous_strides(spec.inputs[input].shape);
}

// Axes of one element get stride 0.
inline HeadStrides head_strides(const StepSpec& spec, size_t input) {
  const Shape& shape = spec.inputs[input].shape;
  Ints strides = strides_of(spec, input);
  auto at = [&](int axis) { return shape[axis] == 1 ? 0 : strides[static_cast<size_t>(axis)]; };
  return {at(0), at(1), at(2)};
}

// Of the output: where each token's heads, one after another, begin.
inline HeadStrides output_strides(const StepSpec& spec) {
  const Shape& shape = spec.output().shape;
  Ints strides = spec.out_strides.empty() ? contiguous_strides(shape) : spec.out_strides;
  auto at = [&](int axis) { return shape[axis] == 1 ? 0 : strides[static_cast<size_t>(axis)]; };
  return {at(0), at(1), shape[3]};
}

inline bool all_multiples(const HeadStrides& s, int64_t elements) {
  return s.batch % elements == 0 && s.token % elements == 0 && s.head % elements == 0;
}

// Of the inputs and the output of attention.
struct AttentionStrides {
  HeadStrides q, k, v, out;

  explicit AttentionStrides(const StepSpec& spec)
      : q(head_strides(spec, 0)), k(head_strides(spec, 1)), v(head_strides(spec, 2)), out(output_strides(spec)) {}
  bool all_multiples(int64_t elements) const {
    for (const HeadStrides& at : {q, k, v, out}) {
      if (!cuda::all_multiples(at, elements)) return false;
    }
    return true;
  }
};

inline bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

}  // namespace kinora::cuda
