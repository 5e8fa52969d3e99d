// Convolution with one filter a channel, channels last. A thread owns four bytes of channels (a warp a whole line) and
// walks down a strip of columns. Each input row, read once, adds to the K output rows that see it; their sums stay in
// registers. Sums are float32, rows above first, so an element's bits do not depend on how the picture is cut.
#include <utility>

#include "cuda/depthwise.cuh"
#include "cuda/heads.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "graph/views.h"

namespace kinora::cuda {
namespace {

constexpr int kResident = 3;  // blocks of a multiprocessor: what the registers are shared among

// What one thread computes: columns [column, column + kColumns) of rows [row, row + rows), V channels.
template <class T, int V, int K, int kColumns>
struct Strip {
  static constexpr int kReach = kColumns + K - 1;
  using W = Word<T, V>;

  const Depthwise& a;
  int channel, column, row;
  int64_t image;
  float weight[K * K][V], bias[V];
  float sums[K][kColumns][V];  // of output row o in slot o mod K
  W words[kReach];             // the input row to be added next
  const T* at;                 // of the row after it
  unsigned inside;

  __device__ void load_weights() {
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int k = 0; k < K * K; ++k) {
        weight[k][v] = load_float(a.w, a.weight_type, (channel + v) * a.filter + k / K * a.filter_line + k % K);
      }
      bias[v] = a.bias ? load_float(a.bias, a.bias_type, channel + v) : 0.0f;
    }
  }

  // Turns to row y of the picture: where its word at the strip's first column lies, and which columns exist.
  __device__ void turn_to(int y) {
    at = static_cast<const T*>(a.x) + image * a.image + y * a.line + int64_t{column - a.padding} * a.pixel + channel;
    inside = 0;
#pragma unroll
    for (int j = 0; j < kReach; ++j) {
      int x = column - a.padding + j;
      if (y >= 0 && y < a.height && x >= 0 && x < a.width) inside |= 1u << j;
    }
  }

  // The word at the strip's column j, zero outside the picture.
  __device__ W load(int j) const {
    return inside >> j & 1u ? *reinterpret_cast<const W*>(at + int64_t{a.pixel} * j) : W{};
  }

  __device__ void clear(int slot) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums[slot][j][v] = bias[v];
    }
  }

  // Adds the row at hand, whose number from the strip's first is kStep mod K, and sends for row `next`.
  template <int kStep>
  __device__ void add_row(int next) {
    turn_to(next);
#pragma unroll
    for (int j = 0; j < kReach; ++j) {
      W word = words[j];
      words[j] = load(j);
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        if (j - kx < 0 || j - kx >= kColumns) continue;
#pragma unroll
        for (int ky = 0; ky < K; ++ky) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            float& sum = sums[(kStep + K - ky) % K][j - kx][v];
            sum = fmaf(word.get(v), weight[ky * K + kx][v], sum);
          }
        }
      }
    }
  }

  __device__ void store(int slot, int y) const {
    T* out = static_cast<T*>(a.y) + ((image * a.out_height + y) * a.out_width + column) * a.channels + channel;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (column + j >= a.out_width) continue;
      W word;
#pragma unroll
      for (int v = 0; v < V; ++v) word.set(v, activate<T>(sums[slot][j][v], a.act));
      *reinterpret_cast<W*>(out + int64_t{a.channels} * j) = word;
    }
  }

  // Input row i of the strip completes output row i - (K - 1).
  template <int kStep>
  __device__ void step(int i, int end) {
    if (i >= end) return;
    add_row<kStep>(i + 1 < end ? row - a.padding + i + 1 : -1);
    constexpr int kDone = (kStep + 1) % K;
    if (i >= K - 1) store(kDone, row + i - (K - 1));
    clear(kDone);
  }

  template <int... kSteps>
  __device__ void steps(int i, int end, std::integer_sequence<int, kSteps...>) {
    (step<kSteps>(i + kSteps, end), ...);
  }

  __device__ void run() {
    load_weights();
#pragma unroll
    for (int slot = 0; slot < K; ++slot) clear(slot);
    turn_to(row - a.padding);
#pragma unroll
    for (int j = 0; j < kReach; ++j) words[j] = load(j);
    int end = min(a.rows, a.out_height - row) + K - 1;
    for (int i = 0; i < end; i += K) steps(i, end, std::make_integer_sequence<int, K>());
  }
};

template <class T, int V, int K, int kColumns>
__global__ void __launch_bounds__(kLanes* kMostStrips, K == 7 ? 2 : kResident) slide(Depthwise a) {
  begin_kernel();
  int lane = static_cast<int>(threadIdx.x) % kLanes, beside = static_cast<int>(threadIdx.x) / kLanes;
  int channel = (static_cast<int>(blockIdx.x) * kLanes + lane) * V;
  int group = static_cast<int>(blockIdx.y) % a.column_groups, strip = static_cast<int>(blockIdx.y) / a.column_groups;
  int column = (group * (static_cast<int>(blockDim.x) / kLanes) + beside) * kColumns;
  if (channel >= a.channels || column >= a.out_width) return;
  Strip<T, V, K, kColumns> s{a, channel, column, strip * a.rows, static_cast<int64_t>(blockIdx.z)};
  s.run();
}

// Any kernel and stride; one output element a thread.
template <class T>
__global__ void direct(Depthwise a, int64_t count) {
  begin_kernel();
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int c = static_cast<int>(i % a.channels);
  int64_t pixel = i / a.channels;
  int ox = static_cast<int>(pixel % a.out_width);
  int oy = static_cast<int>(pixel / a.out_width % a.out_height);
  int64_t image = pixel / a.out_width / a.out_height;
  float sum = a.bias ? load_float(a.bias, a.bias_type, c) : 0.0f;
  for (int ky = 0; ky < a.kernel_height; ++ky) {
    int y = oy * a.stride - a.padding + ky;
    if (y < 0 || y >= a.height) continue;
    for (int kx = 0; kx < a.kernel_width; ++kx) {
      int x = ox * a.stride - a.padding + kx;
      if (x < 0 || x >= a.width) continue;
      float value = to_float(static_cast<const T*>(a.x)[image * a.image + y * a.line + int64_t{x} * a.pixel + c]);
      int64_t at = c * a.filter + ky * a.filter_line + kx;
      sum = fmaf(value, load_float(a.w, a.weight_type, at), sum);
    }
  }
  static_cast<T*>(a.y)[i] = from_float<T>(activate<T>(sum, a.act));
}

struct Launch {
  void (*kernel)(Depthwise);
  int channels_a_thread, columns;
};

Step make_slide(Depthwise a, const Launch& launch, int64_t images) {
  auto strips = static_cast<int>(ceil_div(a.out_width, launch.columns));
  int beside = std::min(strips, kMostStrips), threads = kLanes * beside;
  a.column_groups = static_cast<int>(ceil_div(strips, beside));
  int64_t words = ceil_div(ceil_div(a.channels, launch.channels_a_thread), kLanes);
  int resident = 1;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, launch.kernel, threads, 0));
  int64_t at_once = int64_t{std::max(resident, 1)} * std::max(device_limits().multiprocessors, 1);
  a.rows = choose_rows(a.out_height, a.kernel_height, kMostGrid / a.column_groups, words * a.column_groups * images,
                       at_once);
  dim3 grid(static_cast<unsigned>(words), static_cast<unsigned>(a.column_groups * ceil_div(a.out_height, a.rows)),
            static_cast<unsigned>(images));
  Step step;
  step.run = [=](const StepArgs& args) {
    start_kernel(launch.kernel, grid, static_cast<size_t>(threads), 0, stream_of(args), with_pointers(a, args));
  };
  return step;
}

Depthwise describe(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &w = spec.inputs[1].shape, &y = spec.output().shape;
  Depthwise a{};
  a.weight_type = spec.inputs[1].dtype;
  if (spec.inputs.size() == 3) a.bias_type = spec.inputs[2].dtype;
  a.height = static_cast<int>(x[1]);
  a.width = static_cast<int>(x[2]);
  a.channels = static_cast<int>(x[3]);
  a.out_height = static_cast<int>(y[1]);
  a.out_width = static_cast<int>(y[2]);
  a.kernel_height = static_cast<int>(w[2]);
  a.kernel_width = static_cast<int>(w[3]);
  // An axis of one element may have any stride.
  auto apart = [&](size_t axis) { return x[static_cast<int>(axis)] == 1 ? 0 : spec.strides[0][axis]; };
  if (apart(2) > INT32_MAX) fail(ErrorKind::internal, "conv2d: pixels lie too far apart");
  a.image = apart(0), a.line = apart(1), a.pixel = static_cast<int>(apart(2));
  a.filter = spec.strides[1][0], a.filter_line = spec.strides[1][2];
  a.act = act_of(spec.node.attrs.text("act"));
  a.stride = static_cast<int>(spec.node.attrs.integer("stride"));
  a.padding = static_cast<int>(spec.node.attrs.integer("padding"));
  return a;
}

// The first step where x lies at a multiple of so many bytes, which a slice may not; else the second. They give the
// same bits.
Step where_aligned(size_t bytes, Step aligned, const Step& other) {
  aligned.run = [=, run = aligned.run, otherwise = other.run](const StepArgs& args) {
    (is_aligned(args.in[0], bytes) ? run : otherwise)(args);
  };
  return aligned;
}

// Whether ints and grids hold the extents.
bool fits(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  return y.numel() > 0 && x[0] <= kMostGrid && x[1] <= kMostGrid && x[2] <= kMostGrid && x[3] <= (1 << 24);
}

template <class T, int V>
Launch launch_for(int kernel) {
  if (kernel == 3) return {slide<T, V, 3, 8>, V, 8};
  if (kernel == 5) return {slide<T, V, 5, 6>, V, 6};
  return {slide<T, V, 7, 4>, V, 4};
}

}  // namespace

bool supports_depthwise_conv2d(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  const Shape &x = spec.inputs[0].shape, &w = spec.inputs[1].shape;
  int64_t groups = attrs.integer("groups");
  return attrs.text("weight_layout") == "oihw" && groups == x[3] && groups == w[0] && is_act(attrs.text("act")) &&
         fits(spec) && attrs.integer("stride") <= 65535 && attrs.integer("padding") <= 65535;
}

// By strips: words of channels where they lie at multiples of a word's size.
template <class T>
static Step make_slides(const Depthwise& a, const StepSpec& spec) {
  constexpr int kPair = 4 / sizeof(T);
  int64_t images = spec.inputs[0].shape[0];
  Step apart = make_slide(a, launch_for<T, 1>(a.kernel_height), images);
  if ((a.channels | a.image | a.line | a.pixel) % kPair != 0) return apart;
  Step step = make_slide(a, launch_for<T, kPair>(a.kernel_height), images);
  if (is_contiguous(spec.inputs[0].shape, spec.strides[0])) return step;
  return where_aligned(4, step, apart);
}

Step make_depthwise_conv2d(const StepSpec& spec) {
  Depthwise a = describe(spec);
  int kernel = a.kernel_height;
  bool slides = a.stride == 1 && a.kernel_width == kernel && (kernel == 3 || kernel == 5 || kernel == 7);
  return with_float(spec.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    if (slides) {
      Step step = make_slides<T>(a, spec);
      bool tiles = sizeof(T) == 2 && depthwise_tiles_take(a);
      return tiles ? where_aligned(16, make_depthwise_tiles(a, spec), step) : step;
    }
    int64_t count = spec.output().shape.numel();
    Step step;
    step.run = [=](const StepArgs& args) {
      auto blocks = static_cast<unsigned>(ceil_div(count, 256));
      start_kernel(direct<T>, blocks, 256, 0, stream_of(args), with_pointers(a, args), count);
    };
    return step;
  });
}

}  // namespace kinora::cuda
