// Ops that move elements: all of them one copy between two strided layouts, in the widest words that fit.
#include <array>

#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.h"
#include "graph/views.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256;

// Tensor 0 is read, tensor 1 written.
template <class Word>
__global__ void copy_kernel(const Word* in, Word* out, const __grid_constant__ Layout<2> layout) {
  begin_kernel();
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= layout.count) return;
  int64_t offsets[2];
  layout.offsets(static_cast<uint32_t>(index), offsets);
  out[offsets[1]] = in[offsets[0]];
}

// The same copy in words of `group` elements.
Layout<2> in_words(Layout<2> layout, int group) {
  if (group == 1) return layout;
  int last = layout.rank - 1;
  layout.count /= group;
  layout.extents[last] /= static_cast<uint32_t>(group);
  for (auto& strides : layout.strides) {
    for (int axis = 0; axis < last; ++axis) strides[axis] /= group;
  }
  return layout;
}

struct Copy {
  Layout<2> layout;
  size_t element;

  Copy(std::span<const int64_t> extents, const Ints& from, const Ints& to, size_t element_bytes)
      : layout(make_layout<2>(extents, {from, to})), element(element_bytes) {}

  void operator()(const void* in, void* out, cudaStream_t stream) const {
    if (layout.count == 0) return;
    bool dense = layout.rank > 0 && layout.strides[0][layout.rank - 1] == 1 && layout.strides[1][layout.rank - 1] == 1;
    int group = dense ? group_size(layout, static_cast<int>(16 / element)) : 1;
    auto address = reinterpret_cast<uintptr_t>(in) | reinterpret_cast<uintptr_t>(out);
    while (group > 1 && address % (static_cast<size_t>(group) * element) != 0) group /= 2;
    Layout<2> words = in_words(layout, group);
    size_t bytes = static_cast<size_t>(group) * element;
    if (bytes == 1) launch<uint8_t>(in, out, words, stream);
    if (bytes == 2) launch<uint16_t>(in, out, words, stream);
    if (bytes == 4) launch<uint32_t>(in, out, words, stream);
    if (bytes == 8) launch<uint2>(in, out, words, stream);
    if (bytes == 16) launch<uint4>(in, out, words, stream);
  }

  template <class Word>
  static void launch(const void* in, void* out, const Layout<2>& words, cudaStream_t stream) {
    start_kernel(copy_kernel<Word>, static_cast<unsigned>(ceil_div(words.count, kThreads)), kThreads, 0, stream,
                 static_cast<const Word*>(in), static_cast<Word*>(out), words);
  }
};

const std::byte* advance(const void* base, int64_t elements, size_t size) {
  return static_cast<const std::byte*>(base) + elements * static_cast<int64_t>(size);
}
std::byte* advance(void* base, int64_t elements, size_t size) {
  return static_cast<std::byte*>(base) + elements * static_cast<int64_t>(size);
}

// One read of the first input, shifted by `offset` elements, with these strides in the result's index space.
Step gathered(const StepSpec& spec, const Ints& from, int64_t offset) {
  const Shape& shape = spec.output().shape;
  size_t size = dtype_size(spec.output().dtype);
  Copy copy(shape.dims(), from, contiguous_strides(shape), size);
  Step step;
  step.run = [=](const StepArgs& args) { copy(advance(args.in[0], offset, size), args.out, stream_of(args)); };
  return step;
}

// Repeats edges: result element `at` of an axis shows element at - before, or the nearest that there is.
struct EdgeCopy {
  int rank = 0;
  int64_t count = 1;  // words
  uint32_t extents[Shape::kMaxRank] = {}, from[Shape::kMaxRank] = {}, before[Shape::kMaxRank] = {};
  int64_t strides[Shape::kMaxRank] = {};  // of the input, in words
};

template <class Word>
__global__ void pad_edge_kernel(const Word* in, Word* out, const __grid_constant__ EdgeCopy copy) {
  begin_kernel();
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= copy.count) return;
  auto left = static_cast<uint32_t>(index);
  int64_t offset = 0;
#pragma unroll
  for (int axis = Shape::kMaxRank - 1; axis >= 0; --axis) {
    if (axis >= copy.rank) continue;
    uint32_t next = left / copy.extents[axis], at = left - next * copy.extents[axis];
    uint32_t shown = at < copy.before[axis] ? 0 : min(at - copy.before[axis], copy.from[axis] - 1);
    offset += shown * copy.strides[axis];
    left = next;
  }
  out[index] = in[offset];
}

// Axes that are not padded join the one before where they lie together.
EdgeCopy edge_copy(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  EdgeCopy copy;
  bool joinable = false;
  for (int axis = 0; axis < y.rank(); ++axis) {
    int64_t stride = spec.strides[0][static_cast<size_t>(axis)];
    bool plain = x[axis] == y[axis];
    copy.count *= y[axis];
    int last = copy.rank - 1;
    if (plain && joinable && copy.strides[last] == stride * x[axis]) {
      copy.extents[last] *= static_cast<uint32_t>(x[axis]);
      copy.from[last] = copy.extents[last];
      copy.strides[last] = stride;
      continue;
    }
    joinable = plain;
    ++last;
    copy.rank = last + 1;
    copy.extents[last] = static_cast<uint32_t>(y[axis]);
    copy.from[last] = static_cast<uint32_t>(x[axis]);
    copy.before[last] = static_cast<uint32_t>(spec.node.attrs.ints("before")[static_cast<size_t>(axis)]);
    copy.strides[last] = stride;
  }
  return copy;
}

// The same copy in words of as many elements as the last axis, where it is not padded, and both addresses allow.
EdgeCopy in_words(EdgeCopy copy, size_t element, const void* in, const void* out, size_t& word) {
  int last = copy.rank - 1;
  word = element;
  if (copy.rank == 0 || copy.extents[last] != copy.from[last] || copy.strides[last] != 1) return copy;
  auto address = reinterpret_cast<uintptr_t>(in) | reinterpret_cast<uintptr_t>(out);
  uint32_t group = static_cast<uint32_t>(16 / element);
  auto fits = [&] {
    bool ok = copy.extents[last] % group == 0 && address % (group * element) == 0;
    for (int axis = 0; axis < last; ++axis) ok = ok && copy.strides[axis] % group == 0;
    return ok;
  };
  while (group > 1 && !fits()) group /= 2;
  word = group * element;
  copy.count /= group;
  copy.extents[last] /= group;
  copy.from[last] /= group;
  for (int axis = 0; axis < last; ++axis) copy.strides[axis] /= group;
  return copy;
}

template <class Word>
void launch_edges(const void* in, void* out, const EdgeCopy& copy, cudaStream_t stream) {
  start_kernel(pad_edge_kernel<Word>, static_cast<unsigned>(ceil_div(copy.count, kThreads)), kThreads, 0, stream,
               static_cast<const Word*>(in), static_cast<Word*>(out), copy);
}

// Four phases and the shortcut that is added to them: height and width are the shortcut's, channels the result's.
struct Phases {
  const void *x, *shortcut;
  void* out;
  uint32_t count, height, width, channels;  // count: threads
};

// One pixel of the shortcut a thread, V channels of the four pixels that it becomes; the shortcut has kRows times as
// many channels, of which neighbours belong to the rows.
template <class T, int V, int kRows>
__global__ void phases_kernel(const Phases p) {
  using Word = std::conditional_t<V == 1, T, uint4>;
  begin_kernel();
  uint32_t index = blockIdx.x * kThreads + threadIdx.x;
  if (index >= p.count) return;
  uint32_t groups = p.channels / V, pixel = index / groups, channel = (index - pixel * groups) * V;
  uint32_t line = pixel / p.width, column = pixel - line * p.width, item = line / p.height;
  int64_t stride = int64_t{p.width + 1} * 4 * p.channels, out_stride = int64_t{p.width} * 2 * p.channels;
  // The lines of x are the shortcut's and one more for each item.
  const T* x = static_cast<const T*>(p.x) + (line + item) * stride + int64_t{column} * 4 * p.channels + channel;
  const T* from = static_cast<const T*>(p.shortcut) + (int64_t{pixel} * p.channels + channel) * kRows;
  T* out = static_cast<T*>(p.out) + 2 * line * out_stride + int64_t{column} * 2 * p.channels + channel;
  alignas(16) T values[4][V], added[kRows * V];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const T* phase = x + (i / 2) * stride + (4 * (i % 2) + i) * int64_t{p.channels};
    *reinterpret_cast<Word*>(values[i]) = *reinterpret_cast<const Word*>(phase);
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    *reinterpret_cast<Word*>(added + i * V) = *reinterpret_cast<const Word*>(from + i * V);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values[i][v] = from_float<T>(to_float(values[i][v]) + to_float(added[(4 * v + i) * kRows / 4]));
    }
    *reinterpret_cast<Word*>(out + (i / 2) * out_stride + (i % 2) * int64_t{p.channels}) =
        *reinterpret_cast<const Word*>(values[i]);
  }
}

template <class T, int V>
void launch_phases(Phases p, bool rows, cudaStream_t stream) {
  p.count /= V;
  auto kernel = rows ? phases_kernel<T, V, 2> : phases_kernel<T, V, 1>;
  start_kernel(kernel, static_cast<unsigned>(ceil_div(p.count, kThreads)), kThreads, 0, stream, p);
}

Step add_shortcut(const StepSpec& spec) {
  const Shape& s = spec.inputs[1].shape;
  int64_t channels = spec.output().shape[3], count = s.product(0, 3) * channels;
  DType dtype = spec.output().dtype;
  if (count >= int64_t{1} << 32) {
    fail(ErrorKind::internal, "interleave_phases: more elements than CUDA kernels here index");
  }
  Phases plan{.count = static_cast<uint32_t>(count),
              .height = static_cast<uint32_t>(s[1]),
              .width = static_cast<uint32_t>(s[2]),
              .channels = static_cast<uint32_t>(channels)};
  bool rows = s[3] != channels;
  Step step;
  step.run = [=](const StepArgs& args) {
    if (plan.count == 0) return;
    Phases p = plan;
    p.x = args.in[0], p.shortcut = args.in[1], p.out = args.out;
    auto address =
        reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.shortcut) | reinterpret_cast<uintptr_t>(p.out);
    with_float(dtype, [&]<class T>(T) {
      constexpr int kPack = Pack<T>::kSize;
      if (address % 16 == 0 && p.channels % kPack == 0) {
        launch_phases<T, kPack>(p, rows, stream_of(args));
      } else {
        launch_phases<T, 1>(p, rows, stream_of(args));
      }
    });
  };
  return step;
}

template <class From, class To>
__global__ void gather_kernel(const From* table, const int32_t* ids, To* out, int64_t rows, int64_t width,
                              int64_t entries) {
  begin_kernel();
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= rows * width) return;
  int64_t row = index / width, column = index - row * width, id = ids[row];
  // An id out of range cannot throw here; it must not read elsewhere either.
  out[index] = from_float<To>(id >= 0 && id < entries ? to_float(table[id * width + column]) : NAN);
}

// Rows of g whose id is the block's row, added in their order.
template <class T>
__global__ void scatter_kernel(const T* g, const int32_t* ids, T* out, int64_t count, int64_t width) {
  begin_kernel();
  int64_t row = blockIdx.x;
  for (int64_t column = threadIdx.x; column < width; column += kThreads) {
    float total = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (ids[i] == row) total += to_float(g[i * width + column]);
    }
    out[row * width + column] = from_float<T>(total);
  }
}

}  // namespace

Step make_permute(const StepSpec& spec) {
  Ints from;
  for (int64_t axis : spec.node.attrs.ints("order")) from.push_back(spec.strides[0][static_cast<size_t>(axis)]);
  return gathered(spec, from, 0);
}

Step make_slice(const StepSpec& spec) {
  const Attrs& a = spec.node.attrs;
  auto axis = static_cast<size_t>(a.integer("axis"));
  Ints from = spec.strides[0];
  int64_t offset = a.integer("start") * from[axis];
  from[axis] *= a.integer("stride");
  return gathered(spec, from, offset);
}

Step make_broadcast(const StepSpec& spec) {
  return gathered(spec, broadcast_strides(spec.output().shape, spec.inputs[0].shape, spec.strides[0]), 0);
}

Step make_upsample2(const StepSpec& spec) {
  const Shape& s = spec.inputs[0].shape;
  const Ints& x = spec.strides[0];
  Ints extents{s[0], s[1], 2, s[2], 2, s[3]}, from{x[0], x[1], 0, x[2], 0, x[3]};
  Copy copy(extents, from, contiguous_strides(Shape(std::span<const int64_t>(extents))),
            dtype_size(spec.output().dtype));
  Step step;
  step.run = [=](const StepArgs& args) { copy(args.in[0], args.out, stream_of(args)); };
  return step;
}

// Result (i, r, j, s, c) is x[i + r, j + s] of channel (2r + s)C + c.
Step make_interleave_phases(const StepSpec& spec) {
  if (spec.inputs.size() == 2) return add_shortcut(spec);
  const Shape& y = spec.output().shape;
  const Ints& x = spec.strides[0];
  Ints extents{y[0], y[1] / 2, 2, y[2] / 2, 2, y[3]}, from{x[0], x[1], x[1] + 2 * y[3], x[2], x[2] + y[3], 1};
  Copy copy(extents, from, contiguous_strides(Shape(std::span<const int64_t>(extents))),
            dtype_size(spec.output().dtype));
  Step step;
  step.run = [=](const StepArgs& args) { copy(args.in[0], args.out, stream_of(args)); };
  return step;
}

// Result (2f + q - 1, 2i + r, 2j + s) is x[f, i + r, j + s] of channel (4q + 2r + s)C + c; one copy for each q and
// film, of which the first, q = 0, has no frame for f = 0.
Step make_interleave_phases3d(const StepSpec& spec) {
  const Shape &s = spec.inputs[0].shape, &y = spec.output().shape;
  const Ints& x = spec.strides[0];
  int64_t c = y[4], frames = s[1], picture = y.product(2, 5);
  size_t size = dtype_size(spec.output().dtype);
  struct Part {
    Copy copy;
    int64_t from, to;
  };
  std::vector<Part> parts;
  for (int64_t b = 0; b < s[0]; ++b) {
    for (int64_t q : {int64_t{0}, int64_t{1}}) {
      int64_t first = 1 - q;  // frame of x
      Ints extents{frames - first, y[2] / 2, 2, y[3] / 2, 2, c}, from{x[1], x[2], x[2] + 2 * c, x[3], x[3] + c, 1};
      Ints to{2 * picture, 2 * y[3] * c, y[3] * c, 2 * c, c, 1};
      parts.push_back({Copy(extents, from, to, size), b * x[0] + first * x[1] + 4 * q * c,
                       (b * y[1] + 2 * first + q - 1) * picture});
    }
  }
  Step step;
  step.run = [=](const StepArgs& args) {
    for (const Part& part : parts) {
      part.copy(advance(args.in[0], part.from, size), advance(args.out, part.to, size), stream_of(args));
    }
  };
  return step;
}

Step make_concat(const StepSpec& spec) {
  int axis = static_cast<int>(spec.node.attrs.integer("axis"));
  Ints to = contiguous_strides(spec.output().shape);
  size_t size = dtype_size(spec.output().dtype);
  struct Part {
    Copy copy;
    int64_t offset;
  };
  std::vector<Part> parts;
  int64_t at = 0;
  for (size_t i = 0; i < spec.inputs.size(); ++i) {
    const Shape& shape = spec.inputs[i].shape;
    parts.push_back({Copy(shape.dims(), spec.strides[i], to, size), at * to[static_cast<size_t>(axis)]});
    at += shape[axis];
  }
  Step step;
  step.run = [=](const StepArgs& args) {
    for (size_t i = 0; i < parts.size(); ++i) {
      parts[i].copy(args.in[i], advance(args.out, parts[i].offset, size), stream_of(args));
    }
  };
  return step;
}

Step make_pad(const StepSpec& spec) {
  const Attrs& a = spec.node.attrs;
  auto axis = static_cast<size_t>(a.integer("axis"));
  Ints to = contiguous_strides(spec.output().shape);
  int64_t offset = a.integer("before") * to[axis];
  to[axis] *= a.integer("interior") + 1;
  size_t size = dtype_size(spec.output().dtype), bytes = spec.output().bytes();
  Copy copy(spec.inputs[0].shape.dims(), spec.strides[0], to, size);
  Step step;
  step.run = [=](const StepArgs& args) {
    check(cudaMemsetAsync(args.out, 0, bytes, stream_of(args)));
    copy(args.in[0], advance(args.out, offset, size), stream_of(args));
  };
  return step;
}

Step make_pad_edge(const StepSpec& spec) {
  EdgeCopy whole = edge_copy(spec);
  size_t element = dtype_size(spec.output().dtype);
  if (whole.count >= (int64_t{1} << 32))
    fail(ErrorKind::internal, "pad_edge: more elements than CUDA kernels here index");
  Step step;
  step.run = [=](const StepArgs& args) {
    if (whole.count == 0) return;
    size_t word = 0;
    EdgeCopy copy = in_words(whole, element, args.in[0], args.out, word);
    cudaStream_t stream = stream_of(args);
    if (word == 1) launch_edges<uint8_t>(args.in[0], args.out, copy, stream);
    if (word == 2) launch_edges<uint16_t>(args.in[0], args.out, copy, stream);
    if (word == 4) launch_edges<uint32_t>(args.in[0], args.out, copy, stream);
    if (word == 8) launch_edges<uint2>(args.in[0], args.out, copy, stream);
    if (word == 16) launch_edges<uint4>(args.in[0], args.out, copy, stream);
  };
  return step;
}

Step make_gather(const StepSpec& spec) {
  int64_t entries = spec.inputs[0].shape[0], width = spec.inputs[0].shape[1], rows = spec.inputs[1].shape.numel();
  DType from = spec.inputs[0].dtype, to = spec.output().dtype;
  Step step;
  step.run = [=](const StepArgs& args) {
    if (rows == 0) return;
    with_float(from, [&]<class From>(From) {
      with_float(to, [&]<class To>(To) {
        start_kernel(gather_kernel<From, To>, static_cast<unsigned>(ceil_div(rows * width, kThreads)), kThreads, 0,
                     stream_of(args), static_cast<const From*>(args.in[0]), static_cast<const int32_t*>(args.in[1]),
                     static_cast<To*>(args.out), rows, width, entries);
      });
    });
  };
  return step;
}

Step make_scatter_rows(const StepSpec& spec) {
  int64_t count = spec.inputs[1].shape.numel(), width = spec.inputs[0].shape[-1], rows = spec.output().shape[0];
  DType dtype = spec.output().dtype;
  Step step;
  step.run = [=](const StepArgs& args) {
    if (rows == 0) return;
    with_float(dtype, [&]<class T>(T) {
      start_kernel(scatter_kernel<T>, static_cast<unsigned>(rows), kThreads, 0, stream_of(args),
                   static_cast<const T*>(args.in[0]), static_cast<const int32_t*>(args.in[1]),
                   static_cast<T*>(args.out), count, width);
    });
  };
  return step;
}

}  // namespace kinora::cuda
