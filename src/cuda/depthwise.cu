// Convolution with one kernel a channel, channels last, alone and with the gate of GLUMBConv. A thread owns four bytes
// of channels (a warp a whole line) and walks down a strip of columns. Each input row, read once, adds to the K output
// rows that see it; their sums stay in registers. Sums are float32, rows above first, so an element's bits do not
// depend on how the picture is cut.
#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/kernels.h"

namespace kinora::cuda {
namespace {

constexpr int kMostGrid = 65535;  // blocks along a grid's second and third axis
constexpr int kLanes = 32;        // neighbouring words of channels in a block
constexpr int kMostStrips = 4;    // neighbouring strips of columns in a block
constexpr int kResident = 3;      // blocks of a multiprocessor: what the registers are shared among

struct Depthwise {
  const void *x, *w, *bias;  // bias may be null
  void* y;
  DType weight_type, bias_type;
  Act act;
  int height, width, channels;  // of x
  int out_height, out_width;
  int kernel_height, kernel_width, stride, padding;
  int rows;           // of a strip
  int column_groups;  // blocks beside each other in one row of the picture
};

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
    T value;
    auto half = static_cast<unsigned short>(v ? bits >> 16 : bits & 0xffffu);
    memcpy(&value, &half, sizeof value);
    return to_float(value);
  }
  __device__ void set(int v, float value) {
    T rounded = from_float<T>(value);
    unsigned short half;
    memcpy(&half, &rounded, sizeof half);
    bits |= static_cast<unsigned>(half) << (16 * v);
  }
};

// What one thread computes: columns [column, column + kColumns) of rows [row, row + rows), V channels, or with kGlu V
// pairs of channels half a pixel apart.
template <class T, int V, int K, int kColumns, bool kGlu, bool kSilu>
struct Strip {
  static constexpr int kHalves = kGlu ? 2 : 1, kReach = kColumns + K - 1;
  using W = Word<T, V>;

  const Depthwise& a;
  int channel, column, row;
  int64_t image;
  float weight[kHalves][K * K][V], bias[kHalves][V];
  float sums[K][kHalves][kColumns][V];  // of output row o in slot o mod K
  W words[kHalves][kReach];             // the input row to be added next
  const T* at;                          // of the row after it
  unsigned inside;

  __device__ int half() const { return a.channels / 2; }

  __device__ void load_weights() {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        int c = channel + h * half() + v;
#pragma unroll
        for (int k = 0; k < K * K; ++k) weight[h][k][v] = load_float(a.w, a.weight_type, int64_t{c} * (K * K) + k);
        bias[h][v] = a.bias ? load_float(a.bias, a.bias_type, c) : 0.0f;
      }
    }
  }

  // Turns to row y of the picture: where its word at the strip's first column lies, and which columns exist.
  __device__ void turn_to(int y) {
    int64_t pixel = (image * a.height + y) * a.width + column - a.padding;
    at = static_cast<const T*>(a.x) + pixel * a.channels + channel;
    inside = 0;
#pragma unroll
    for (int j = 0; j < kReach; ++j) {
      int x = column - a.padding + j;
      if (y >= 0 && y < a.height && x >= 0 && x < a.width) inside |= 1u << j;
    }
  }

  // The word at the strip's column j, zero outside the picture.
  __device__ W load(int h, int j) const {
    return inside >> j & 1u ? *reinterpret_cast<const W*>(at + int64_t{a.channels} * j + (h ? half() : 0)) : W{};
  }

  __device__ void clear(int slot) {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int v = 0; v < V; ++v) sums[slot][h][j][v] = bias[h][v];
      }
    }
  }

  // Adds the row at hand, whose number from the strip's first is kStep mod K, while the next one is on its way.
  template <int kStep>
  __device__ void add_row(int next) {
    turn_to(next);
#pragma unroll
    for (int j = 0; j < kReach; ++j) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        W word = words[h][j];
        words[h][j] = load(h, j);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          float value = word.get(v);
          if constexpr (kSilu) value = silu_for<T>(value);
#pragma unroll
          for (int kx = 0; kx < K; ++kx) {
            if (j - kx < 0 || j - kx >= kColumns) continue;
#pragma unroll
            for (int ky = 0; ky < K; ++ky) {
              float& sum = sums[(kStep + K - ky) % K][h][j - kx][v];
              sum = fmaf(value, weight[h][ky * K + kx][v], sum);
            }
          }
        }
      }
    }
  }

  __device__ void store(int slot, int y) const {
    int out = kGlu ? half() : a.channels;
    T* at = static_cast<T*>(a.y) + ((image * a.out_height + y) * a.out_width + column) * out + channel;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (column + j >= a.out_width) continue;
      W word;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float value = sums[slot][0][j][v];
        if constexpr (kGlu) {
          value *= silu_for<T>(sums[slot][kHalves - 1][j][v]);
        } else {
          value = activate<T>(value, a.act);
        }
        word.set(v, value);
      }
      *reinterpret_cast<W*>(at + int64_t{j} * out) = word;
    }
  }

  // Input row i of the strip completes output row i - (K - 1).
  template <int kStep>
  __device__ void step(int i, int last) {
    if (i >= last) return;
    add_row<kStep>(i + 1 < last ? row - a.padding + i + 1 : -1);
    constexpr int kDone = (kStep + 1) % K;
    if (i >= K - 1) store(kDone, row + i - (K - 1));
    clear(kDone);
  }

  template <int... kSteps>
  __device__ void steps(int i, int last, std::integer_sequence<int, kSteps...>) {
    (step<kSteps>(i + kSteps, last), ...);
  }

  __device__ void run() {
    load_weights();
#pragma unroll
    for (int slot = 0; slot < K; ++slot) clear(slot);
    turn_to(row - a.padding);
#pragma unroll
    for (int j = 0; j < kReach; ++j) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) words[h][j] = load(h, j);
    }
    int last = min(a.rows, a.out_height - row) + K - 1;
    for (int i = 0; i < last; i += K) steps(i, last, std::make_integer_sequence<int, K>());
  }
};

template <class T, int V, int K, int kColumns, bool kGlu, bool kSilu>
__global__ void __launch_bounds__(kLanes* kMostStrips, K == 7 ? 2 : kResident) slide(Depthwise a) {
  int channel = (static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x)) * V;
  int group = static_cast<int>(blockIdx.y) % a.column_groups, strip = static_cast<int>(blockIdx.y) / a.column_groups;
  int column = (group * static_cast<int>(blockDim.y) + static_cast<int>(threadIdx.y)) * kColumns;
  if (channel >= (kGlu ? a.channels / 2 : a.channels) || column >= a.out_width) return;
  Strip<T, V, K, kColumns, kGlu, kSilu> s{a, channel, column, strip * a.rows, static_cast<int64_t>(blockIdx.z)};
  s.run();
}

// Any kernel and stride; one output element a thread.
template <class T>
__global__ void direct(Depthwise a, int64_t count) {
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
      float value = to_float(static_cast<const T*>(a.x)[((image * a.height + y) * a.width + x) * a.channels + c]);
      int64_t at = (int64_t{c} * a.kernel_height + ky) * a.kernel_width + kx;
      sum = fmaf(value, load_float(a.w, a.weight_type, at), sum);
    }
  }
  static_cast<T*>(a.y)[i] = from_float<T>(activate<T>(sum, a.act));
}

// Cuts the height so that the rounds of blocks times the rows of each, with those read twice, are fewest.
int choose_rows(int height, int kernel, int most_strips, int64_t blocks_a_strip, int64_t blocks_at_once) {
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

struct Launch {
  void (*kernel)(Depthwise);
  int channels_a_thread, columns;
};

Step make_slide(Depthwise a, const Launch& launch, int64_t images, int out_channels) {
  auto strips = static_cast<int>(ceil_div(a.out_width, launch.columns));
  dim3 block(kLanes, static_cast<unsigned>(std::min(strips, kMostStrips)));
  a.column_groups = static_cast<int>(ceil_div(strips, block.y));
  int64_t words = ceil_div(ceil_div(out_channels, launch.channels_a_thread), kLanes);
  int resident = 1;
  check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, launch.kernel, static_cast<int>(block.x * block.y), 0));
  int64_t at_once = int64_t{std::max(resident, 1)} * std::max(device_limits().multiprocessors, 1);
  a.rows = choose_rows(a.out_height, a.kernel_height, kMostGrid / a.column_groups, words * a.column_groups * images,
                       at_once);
  dim3 grid(static_cast<unsigned>(words), static_cast<unsigned>(a.column_groups * ceil_div(a.out_height, a.rows)),
            static_cast<unsigned>(images));
  Step step;
  step.run = [=](const StepArgs& args) {
    Depthwise call = a;
    call.x = args.in[0];
    call.w = args.in[1];
    call.bias = args.in.size() == 3 ? args.in[2] : nullptr;
    call.y = args.out;
    launch.kernel<<<grid, block, 0, stream_of(args)>>>(call);
    check(cudaGetLastError());
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
  a.stride = 1;
  a.padding = 1;
  return a;
}

// Whether ints and grids hold the extents.
bool fits(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  return y.numel() > 0 && x[0] <= kMostGrid && x[1] <= kMostGrid && x[2] <= kMostGrid && x[3] <= (1 << 24);
}

template <class T, int V, bool kGlu, bool kSilu>
Launch launch3() {
  constexpr int kColumns = kGlu && V > 1 ? 4 : 8;
  return {slide<T, V, 3, kColumns, kGlu, kSilu>, V, kColumns};
}

template <class T, int V>
Launch launch_for(int kernel) {
  if (kernel == 3) return launch3<T, V, false, false>();
  if (kernel == 5) return {slide<T, V, 5, 6, false, false>, V, 6};
  return {slide<T, V, 7, 4, false, false>, V, 4};
}

}  // namespace

bool supports_depthwise_conv2d(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  const Shape &x = spec.inputs[0].shape, &w = spec.inputs[1].shape;
  int64_t groups = attrs.integer("groups");
  return attrs.text("weight_layout") == "oihw" && groups == x[3] && groups == w[0] && is_act(attrs.text("act")) &&
         fits(spec) && attrs.integer("stride") <= 65535 && attrs.integer("padding") <= 65535;
}

Step make_depthwise_conv2d(const StepSpec& spec) {
  Depthwise a = describe(spec);
  a.act = act_of(spec.node.attrs.text("act"));
  a.stride = static_cast<int>(spec.node.attrs.integer("stride"));
  a.padding = static_cast<int>(spec.node.attrs.integer("padding"));
  int kernel = a.kernel_height;
  bool slides = a.stride == 1 && a.kernel_width == kernel && (kernel == 3 || kernel == 5 || kernel == 7);
  return with_float(spec.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    if (slides) {
      bool pairs = sizeof(T) == 2 && a.channels % 2 == 0;
      Launch launch = pairs ? launch_for<T, 4 / sizeof(T)>(kernel) : launch_for<T, 1>(kernel);
      return make_slide(a, launch, spec.inputs[0].shape[0], a.channels);
    }
    int64_t count = spec.output().shape.numel();
    Step step;
    step.run = [=](const StepArgs& args) {
      Depthwise call = a;
      call.x = args.in[0];
      call.w = args.in[1];
      call.bias = args.in.size() == 3 ? args.in[2] : nullptr;
      call.y = args.out;
      direct<T><<<static_cast<unsigned>(ceil_div(count, 256)), 256, 0, stream_of(args)>>>(call, count);
      check(cudaGetLastError());
    };
    return step;
  });
}

bool supports_depthwise_glu(const StepSpec& spec) {
  const std::string& act = spec.node.attrs.text("act");
  return (act == "none" || act == "silu") && fits(spec);
}

Step make_depthwise_glu(const StepSpec& spec) {
  Depthwise a = describe(spec);
  a.act = Act::none;
  bool silu = spec.node.attrs.text("act") == "silu";
  return with_float(spec.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kPair = 4 / sizeof(T);
    Launch one = silu ? launch3<T, 1, true, true>() : launch3<T, 1, true, false>();
    Launch pair = silu ? launch3<T, kPair, true, true>() : launch3<T, kPair, true, false>();
    return make_slide(a, a.channels / 2 % kPair == 0 ? pair : one, spec.inputs[0].shape[0], a.channels / 2);
  });
}

}  // namespace kinora::cuda
