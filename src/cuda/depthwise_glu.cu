// The middle of GLUMBConv in one pass: activation, 3x3 convolution with one filter a channel, gate. As in depthwise.cu
// a thread walks down a strip of columns with the sums of three output rows in registers; here for a word of channels
// and its gate, half a pixel away. The activation costs as much as the convolution, so each element's is computed once:
// strips beside each other hand their edge columns over through shared memory.
#include "cuda/depthwise.cuh"
#include "cuda/kernels.h"

namespace kinora::cuda {
namespace {

constexpr int kColumns = 4;   // of a strip
constexpr int kResident = 3;  // blocks of a multiprocessor: what the registers are shared among

struct Gated {
  const void *x, *w, *bias;  // bias may be null
  void* y;
  DType weight_type, bias_type;
  int height, width, half;  // half the channels of x: those of y
  int rows;                 // of a strip
  int column_groups;        // blocks beside each other in one row of the picture
};

// One column's float32 values: channels, then gates.
template <int V>
struct alignas(8 * V) Values {
  float of[2][V];
};

template <class T, int V, bool kSilu>
struct GatedStrip {
  using W = Word<T, V>;

  const Gated& a;
  int channel, column, row;
  int64_t image;
  bool first, last;  // of the block's strips: it computes the column beyond its outer edge itself
  bool there;        // whether the channels exist; a thread without them only keeps step
  float weight[2][9][V], bias[2][V];
  float sums[3][kColumns][2][V];  // of output row o in slot o mod 3
  W words[kColumns + 2][2];       // the input row to be added next, from one column before the strip
  const T* at;                    // column 0 of the row after it
  unsigned inside;                // bit j: this thread loads column j

  __device__ void load_weights() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        int c = there ? channel + h * a.half + v : 0;
#pragma unroll
        for (int k = 0; k < 9; ++k) weight[h][k][v] = load_float(a.w, a.weight_type, int64_t{c} * 9 + k);
        bias[h][v] = a.bias ? load_float(a.bias, a.bias_type, c) : 0.0f;
      }
    }
  }

  // Which columns this thread loads: its own, and one beyond the block's edges; all of them within the picture.
  __device__ void find_columns() {
    inside = 0;
#pragma unroll
    for (int j = 0; j < kColumns + 2; ++j) {
      bool mine = j == 0 ? first : j <= kColumns || last;
      int x = column - 1 + j;
      if (there && mine && x >= 0 && x < a.width) inside |= 1u << j;
    }
    at = static_cast<const T*>(a.x) + ((image * a.height + row - 1) * a.width + column - 1) * 2 * a.half + channel;
  }

  __device__ W read(int j, int h) const { return *reinterpret_cast<const W*>(at + int64_t{a.half} * (2 * j + h)); }

  // Sends for row y, the next one down; zeros outside the picture.
  __device__ void send_for(int y) {
    constexpr unsigned kOwn = ((1u << kColumns) - 1) << 1;
    unsigned columns = y >= 0 && y < a.height ? inside : 0u;
    if ((columns & kOwn) == kOwn) {
#pragma unroll
      for (int j = 1; j <= kColumns; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) words[j][h] = read(j, h);
      }
    } else {
#pragma unroll
      for (int j = 1; j <= kColumns; ++j) {
#pragma unroll
        for (int h = 0; h < 2; ++h) words[j][h] = columns >> j & 1u ? read(j, h) : W{};
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (first) words[0][h] = columns & 1u ? read(0, h) : W{};
      if (last) words[kColumns + 1][h] = columns >> (kColumns + 1) ? read(kColumns + 1, h) : W{};
    }
    at += int64_t{a.half} * 2 * a.width;
  }

  __device__ Values<V> activated(int j) const {
    Values<V> values;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float value = words[j][h].get(v);
        if constexpr (kSilu) value = silu_for<T>(value);
        values.of[h][v] = value;
      }
    }
    return values;
  }

  // Adds column j of a row whose number from the strip's first is kStep mod 3. An output's first term meets its bias.
  template <int kStep>
  __device__ void add_column(int j, const Values<V>& values) {
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
      if (j - kx < 0 || j - kx >= kColumns) continue;
#pragma unroll
      for (int ky = 0; ky < 3; ++ky) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int v = 0; v < V; ++v) {
            float& sum = sums[(kStep + 3 - ky) % 3][j - kx][h][v];
            sum = fmaf(values.of[h][v], weight[h][ky * 3 + kx][v], ky == 0 && kx == 0 ? bias[h][v] : sum);
          }
        }
      }
    }
  }

  __device__ void store(int slot, int y) const {
    if (!there) return;
    T* out = static_cast<T*>(a.y) + ((image * a.height + y) * a.width + column) * a.half + channel;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (column + j >= a.width) continue;
      W word;
#pragma unroll
      for (int v = 0; v < V; ++v) word.set(v, sums[slot][j][0][v] * silu_for<T>(sums[slot][j][1][v]));
      *reinterpret_cast<W*>(out + int64_t{a.half} * j) = word;
    }
  }

  // Input row i of the strip completes output row i - 2. `edges` [strip][left, right][lane] is this row's; the rows
  // before and after use another, so one barrier a row keeps writers from readers.
  template <int kStep>
  __device__ void step(int i, int end, Values<V> (*edges)[2][kLanes]) {
    if (i >= end) return;
    int lane = static_cast<int>(threadIdx.x), strip = static_cast<int>(threadIdx.y);
    Values<V> columns[kColumns + 2];
#pragma unroll
    for (int j = 1; j <= kColumns; ++j) columns[j] = activated(j);
    edges[strip][0][lane] = columns[1];
    edges[strip][1][lane] = columns[kColumns];
    if (first) columns[0] = activated(0);
    if (last) columns[kColumns + 1] = activated(kColumns + 1);
    send_for(i + 1 < end ? row + i : -1);
    __syncthreads();
    if (!first) columns[0] = edges[strip - 1][1][lane];
    if (!last) columns[kColumns + 1] = edges[strip + 1][0][lane];
#pragma unroll
    for (int j = 0; j < kColumns + 2; ++j) add_column<kStep>(j, columns[j]);
    constexpr int kDone = (kStep + 1) % 3;
    if (i >= 2) store(kDone, row + i - 2);
  }

  __device__ void run(Values<V> (*edges)[kMostStrips][2][kLanes]) {
    load_weights();
    find_columns();
    send_for(row - 1);
    int end = min(a.rows, a.height - row) + 2;
    for (int i = 0; i < end; i += 3) {
      step<0>(i, end, edges[i & 1]);
      step<1>(i + 1, end, edges[(i + 1) & 1]);
      step<2>(i + 2, end, edges[i & 1]);
    }
  }
};

template <class T, int V, bool kSilu>
__global__ void __launch_bounds__(kLanes* kMostStrips, kResident) gate(Gated a) {
  __shared__ Values<V> edges[2][kMostStrips][2][kLanes];
  int channel = (static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x)) * V;
  int group = static_cast<int>(blockIdx.y) % a.column_groups, strip = static_cast<int>(blockIdx.y) / a.column_groups;
  int column = (group * static_cast<int>(blockDim.y) + static_cast<int>(threadIdx.y)) * kColumns;
  GatedStrip<T, V, kSilu> s{a,
                            channel,
                            column,
                            strip * a.rows,
                            static_cast<int64_t>(blockIdx.z),
                            threadIdx.y == 0,
                            threadIdx.y + 1 == blockDim.y,
                            channel < a.half};
  s.run(edges);
}

struct Launch {
  void (*kernel)(Gated);
  int channels_a_thread;
};

}  // namespace

bool supports_depthwise_glu(const StepSpec& spec) {
  const std::string& act = spec.node.attrs.text("act");
  const Shape& x = spec.inputs[0].shape;
  return spec.inputs[1].shape[2] == 3 && (act == "none" || act == "silu") && x.numel() > 0 && x[0] <= kMostGrid &&
         x[1] <= kMostGrid && x[2] <= kMostGrid && x[3] <= (1 << 24);
}

Step make_depthwise_glu(const StepSpec& spec) {
  if (depthwise_glu_variant >= 0) return make_depthwise_glu_rows(spec);
  const Shape& x = spec.inputs[0].shape;
  Gated a{};
  a.weight_type = spec.inputs[1].dtype;
  if (spec.inputs.size() == 3) a.bias_type = spec.inputs[2].dtype;
  a.height = static_cast<int>(x[1]);
  a.width = static_cast<int>(x[2]);
  a.half = static_cast<int>(x[3] / 2);
  bool silu = spec.node.attrs.text("act") == "silu";
  Launch launch = with_float(spec.inputs[0].dtype, [&](auto zero) -> Launch {
    using T = decltype(zero);
    constexpr int kPair = 4 / sizeof(T);
    if (a.half % kPair) return {silu ? gate<T, 1, true> : gate<T, 1, false>, 1};
    return {silu ? gate<T, kPair, true> : gate<T, kPair, false>, kPair};
  });
  auto strips = static_cast<int>(ceil_div(a.width, kColumns));
  dim3 block(kLanes, static_cast<unsigned>(std::min(strips, kMostStrips)));
  a.column_groups = static_cast<int>(ceil_div(strips, block.y));
  int64_t words = ceil_div(ceil_div(a.half, launch.channels_a_thread), kLanes);
  int resident = 1;
  check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, launch.kernel, static_cast<int>(block.x * block.y), 0));
  int64_t at_once = int64_t{std::max(resident, 1)} * std::max(device_limits().multiprocessors, 1);
  a.rows = choose_rows(a.height, 3, kMostGrid / a.column_groups, words * a.column_groups * x[0], at_once);
  dim3 grid(static_cast<unsigned>(words), static_cast<unsigned>(a.column_groups * ceil_div(a.height, a.rows)),
            static_cast<unsigned>(x[0]));
  Step step;
  step.run = [=](const StepArgs& args) {
    Gated call = a;
    call.x = args.in[0];
    call.w = args.in[1];
    call.bias = args.in.size() == 3 ? args.in[2] : nullptr;
    call.y = args.out;
    launch.kernel<<<grid, block, 0, stream_of(args)>>>(call);
    check(cudaGetLastError());
  };
  return step;
}

}  // namespace kinora::cuda
