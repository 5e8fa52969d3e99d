// The middle of GLUMBConv in one pass: activation, 3x3 convolution with one filter a channel, gate.
//
// A block walks down a strip of columns of a slab of channels and their gates. Each row has two parts, done by the same
// threads for neighbouring rows at once, so that special functions and products overlap: the activation of each element
// of the row kEvery below, once, from registers filled some rows ahead into shared memory; and the products of this
// row, read from there, with sums of two output rows in registers. One barrier every kEvery rows keeps writers from
// readers.
#include "cuda/depthwise.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace kinora::cuda {

namespace {

struct Gated {
  const void *x, *w, *bias;  // bias may be null
  void* y;
  DType weight_type, bias_type;
  int height, width, half;  // half the channels of x: those of y
  int rows;                 // of a strip
  int strips;               // of columns, beside each other
};

// Of inputs and of gates: half of this kernel's time were their special functions.
template <class T>
__device__ inline float silu_here(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return silu_rough(x);
  } else {
    return silu_for<T>(x);
  }
}

// Four neighbouring channels, kept as they lie in memory until they are used.
template <class T>
struct Four {
  uint2 bits{};
  __device__ float get(int i) const { return Word<T, 2>{i < 2 ? bits.x : bits.y}.get(i % 2); }
  // Zeros where not `there`; without a branch, which would part the work around it.
  __device__ static Four load(const T* at, bool there) {
    Four four;
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %3, 0; mov.b32 %0, 0; mov.b32 %1, 0; @p ld.global.v2.b32 {%0, %1}, [%2]; }"
        : "=&r"(four.bits.x), "=&r"(four.bits.y)
        : "l"(__cvta_generic_to_global(at)), "r"(static_cast<int>(there)));
    return four;
  }
  __device__ void set(int i, T value) {
    unsigned short part;
    memcpy(&part, &value, sizeof part);
    (i < 2 ? bits.x : bits.y) |= static_cast<unsigned>(part) << (16 * (i % 2));
  }
};
template <>
struct Four<float> {
  float4 bits{};
  __device__ float get(int i) const { return i < 2 ? (i ? bits.y : bits.x) : (i == 2 ? bits.z : bits.w); }
  __device__ static Four load(const float* at, bool there) {
    return there ? Four{*reinterpret_cast<const float4*>(at)} : Four{};
  }
  __device__ void set(int i, float value) { (i < 2 ? (i ? bits.y : bits.x) : (i == 2 ? bits.z : bits.w)) = value; }
};

__device__ inline void store_two(float* at, float low, float high, bool there) {
  if (there) *reinterpret_cast<float2*>(at) = make_float2(low, high);
}
template <class T>
__device__ inline void store_two(T* at, float low, float high, bool there) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %2, 0; @p st.global.b32 [%0], %1; }" ::"l"(__cvta_generic_to_global(at)),
               "r"(Pair<T>::of(low, high)), "r"(static_cast<int>(there))
               : "memory");
}

// kLanes pairs of channels (and of their gates) by kColumns columns a thread; rows are loaded kAhead rows before their
// activation, and threads wait for each other every kEvery rows.
template <int Threads, int Blocks, int Ahead, int Every>
struct Tile {
  static constexpr int kLanes = 16, kColumns = 4, kThreads = Threads, kBlocks = Blocks, kAhead = Ahead;
  static constexpr int kEvery = Every, kBuffers = 2 * Every;
};

// kWhole: channels come in fours that lie at multiples of a four's size. kEdges: there are strips beside this one.
template <class T, class Tile, bool kSilu, bool kWhole, bool kEdges>
struct GatedStrip {
  static constexpr int kPairs = Tile::kLanes, kColumns = Tile::kColumns, kAhead = Tile::kAhead;
  static constexpr int kEvery = Tile::kEvery, kBuffers = Tile::kBuffers;  // rows in shared memory
  static constexpr int kFours = kPairs / 2, kPasses = kColumns / 2;

  const Gated& a;
  float4* activated;  // [row mod kBuffers][column from one before the strip][slot]: two channels, their gates
  int row;            // the strip's first
  int end;            // input rows of the strip
  int span;           // columns of one row in `activated`

  // As one who activates: of channels 4·four.. and their gates in columns `at_column` + k · pass.
  int four, at_column, pass;
  int count;        // how many of the four channels exist
  unsigned inside;  // bit k: the column of pass k lies in the picture
  const T* at;      // in the row to be loaded next
  Four<T> raw[kAhead][kPasses][2];

  // The same of the columns beside the strip, the channels or the gates alone. Warps take turns at them, row by row.
  int warps, until;  // rows until it is this warp's turn
  int beyond_half, beyond_column;
  bool beyond_inside;
  const T* beyond_at;
  Four<T> beyond_raw;

  // As one who convolves: channels `channel`.. of columns `column`.. of the picture.
  int slot, local, channel, column;
  T* out;  // row to be stored next
  float weight[2][9][2], bias[2][2];
  float sums[2][kColumns][2][2];  // of the output rows above and at the input row

  __device__ GatedStrip(const Gated& args, float4* shared) : a(args), activated(shared) {
    int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    int groups = threads / kPairs, slab = static_cast<int>(blockIdx.x) * kPairs * 2;
    int strip = static_cast<int>(blockIdx.y) % a.strips, left = strip * groups * kColumns;
    int64_t image = blockIdx.z;
    row = static_cast<int>(blockIdx.y) / a.strips * a.rows;
    end = min(a.rows, a.height - row) + 2;
    span = groups * kColumns + 2;

    four = thread % kFours;
    at_column = thread / kFours;
    pass = 2 * groups;
    int first = slab + 4 * four;
    count = max(0, min(4, a.half - first));
    inside = 0;
#pragma unroll
    for (int k = 0; k < kPasses; ++k) {
      if (count > 0 && left + at_column + k * pass < a.width) inside |= 1u << k;
    }
    const T* line = static_cast<const T*>(a.x) + (image * a.height + row - 1) * a.width * 2 * a.half + first;
    at = line + int64_t{left + at_column} * 2 * a.half;
    static_assert(4 * kFours == 32, "both halves of two columns, a lane each");
    warps = threads / 32;
    until = (thread / 32 + static_cast<int>(blockIdx.x)) % warps;
    beyond_half = thread / 16 % 2;
    beyond_column = thread / kFours % 2 ? span - 1 : 0;
    int x = left - 1 + beyond_column;
    beyond_inside = count > 0 && x >= 0 && x < a.width;
    beyond_at = line + int64_t{x} * 2 * a.half + int64_t{beyond_half} * a.half;

    slot = thread % kPairs;
    local = thread / kPairs * kColumns;
    channel = slab + 2 * (2 * (slot % kFours) + slot / kFours);
    column = left + local;
    out = static_cast<T*>(a.y) + ((image * a.height + row) * a.width + column) * a.half + channel;
  }

  __device__ Four<T> read(const T* from, bool there) const {
    if constexpr (kWhole) {
      return Four<T>::load(from, there);
    } else {
      Four<T> values;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (there && i < count) values.set(i, from[i]);
      }
      return values;
    }
  }

  __device__ bool is_row(int i) const {
    int y = row - 1 + i;
    return i < end && y >= 0 && y < a.height;
  }

  // Sends for input row i; rows are sent for in order. Zeros outside the picture.
  __device__ void send_for(int i, Four<T> (&words)[kPasses][2]) {
    bool there = is_row(i);
#pragma unroll
    for (int k = 0; k < kPasses; ++k) {
      const T* from = at + int64_t{k * pass} * (2 * a.half);
      bool here = there && (inside >> k & 1u);
      words[k][0] = read(from, here);
      words[k][1] = read(from + a.half, here);
    }
    at += int64_t{a.width} * (2 * a.half);
  }

  __device__ void send_for_beyond(int i) {
    beyond_raw = read(beyond_at + int64_t{a.width} * i * (2 * a.half), beyond_inside && is_row(i));
  }

  __device__ void activate_four(const Four<T>& words, float (&values)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = words.get(i);
      if constexpr (kSilu) values[i] = silu_here<T>(values[i]);
    }
  }

  // Column `to` (0: the one before the strip) of the row kept in `buffer`.
  __device__ void put(int buffer, int to, const float (&values)[2][4]) {
    float4* slots = activated + (buffer * span + to) * kPairs + four;
    slots[0] = make_float4(values[0][0], values[0][1], values[1][0], values[1][1]);
    slots[kFours] = make_float4(values[0][2], values[0][3], values[1][2], values[1][3]);
  }

  __device__ void activate(int buffer, int to, const Four<T> (&words)[2]) {
    float values[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) activate_four(words[h], values[h]);
    put(buffer, to, values);
  }

  __device__ void activate_beyond(int buffer) {
    float values[4];
    activate_four(beyond_raw, values);
    auto* slots = reinterpret_cast<float2*>(activated + (buffer * span + beyond_column) * kPairs + four) + beyond_half;
    slots[0] = make_float2(values[0], values[1]);
    slots[2 * kFours] = make_float2(values[2], values[3]);
  }

  // Calls f with `values` as a pointer to its type, once for many loads: each of them apart would wait for the last.
  template <class F>
  __device__ static void with_type(const void* values, DType type, F&& f) {
    switch (type) {
      case DType::f16: f(static_cast<const __half*>(values)); break;
      case DType::bf16: f(static_cast<const __nv_bfloat16*>(values)); break;
      default: f(static_cast<const float*>(values)); break;
    }
  }

  __device__ int channel_of(int h, int v) const { return min(channel + v, a.half - 1) + h * a.half; }

  __device__ void load_constants() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        bias[h][v] = 0;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums[0][j][h][v] = sums[1][j][h][v] = 0;
      }
    }
    with_type(a.w, a.weight_type, [&](const auto* w) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
#pragma unroll
          for (int k = 0; k < 9; ++k) weight[h][k][v] = to_float(w[int64_t{channel_of(h, v)} * 9 + k]);
        }
      }
    });
    if (!a.bias) return;
    with_type(a.bias, a.bias_type, [&](const auto* b) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int v = 0; v < 2; ++v) bias[h][v] = to_float(b[channel_of(h, v)]);
      }
    });
  }

  __device__ void store(int j, const float (&done)[2][2]) const {
    bool there = channel < a.half && column + j < a.width;
    float y[2];
#pragma unroll
    for (int v = 0; v < 2; ++v) y[v] = done[0][v] * silu_here<T>(done[1][v]);
    T* to = out + int64_t{a.half} * j;
    if constexpr (kWhole) {
      store_two(to, y[0], y[1], there);
    } else {
      if (there) to[0] = from_float<T>(y[0]);
      if (there && channel + 1 < a.half) to[1] = from_float<T>(y[1]);
    }
  }

  // Adds column c of an input row, which completes the output row above the one above. An output's first term meets its
  // bias, and its terms come row by row, then column by column.
  template <bool kStore>
  __device__ void add_column(int c, const float4& word, float (&done)[kColumns][2][2]) {
    float in[2][2] = {{word.x, word.y}, {word.z, word.w}};
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
      int j = c - kx;
      if (j < 0 || j >= kColumns) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          float &above = sums[0][j][h][v], &here = sums[1][j][h][v];
          if (kStore) done[j][h][v] = fmaf(in[h][v], weight[h][6 + kx][v], kx ? done[j][h][v] : above);
          above = fmaf(in[h][v], weight[h][3 + kx][v], kx ? above : here);
          here = fmaf(in[h][v], weight[h][kx][v], kx ? here : bias[h][v]);
        }
      }
    }
  }

  // Input row i, whose number is kStep mod kBuffers, and the activation of the row kEvery after it, in turns: the
  // products of a column hide the special functions of an activation. Shared memory is read before it is written, as
  // far as registers go, so that the compiler may move one past the other.
  template <int kStep, bool kStore>
  __device__ void step(int i) {
    constexpr int kNext = (kStep + kEvery) % kBuffers;
    Four<T>(&next)[kPasses][2] = raw[kStep % kAhead];
    const float4* from = activated + (kStep * span + local) * kPairs + slot;
    float4 words[kColumns + 2];
    float done[kColumns][2][2], values[2][4];
#pragma unroll
    for (int c = 0; c < kColumns + 2; ++c) words[c] = from[c * kPairs];
#pragma unroll
    for (int c = 0; c < kColumns + 2; ++c) {
      if (c < kColumns) activate_four(next[c / 2][c % 2], values[c % 2]);
      add_column<kStore>(c, words[c], done);
      if (c < kColumns && c % 2) put(kNext, 1 + at_column + c / 2 * pass, values);
      if (c == kColumns - 1) send_for(i + kEvery + kAhead, next);
      if (kStore && c >= 2) store(c - 2, done[c - 2]);
    }
    if (kStore) out += int64_t{a.width} * a.half;
    if (kEdges && until-- == 0) {
      activate_beyond(kNext);
      send_for_beyond(i + kEvery + warps);
      until = warps - 1;
    }
    if (kStep % kEvery == kEvery - 1) __syncthreads();
  }

  template <int kStep>
  __device__ void steps(int i) {
    if constexpr (kStep < kBuffers) {
      if (kStep > 0 && i >= end) return;
      step<(kStep + 2) % kBuffers, true>(i);
      steps<kStep + 1>(i + 1);
    }
  }

  __device__ void run() {
    Four<T> top[kEvery][kPasses][2];
#pragma unroll
    for (int i = 0; i < kEvery; ++i) send_for(i, top[i]);
    send_for_beyond(0);
#pragma unroll
    for (int i = 0; i < kAhead; ++i) send_for(kEvery + i, raw[i]);
    load_constants();
#pragma unroll
    for (int i = 0; i < kEvery; ++i) {
#pragma unroll
      for (int k = 0; k < kPasses; ++k) activate(i, 1 + at_column + k * pass, top[i][k]);
    }
    if constexpr (kEdges) {
#pragma unroll
      for (int i = 0; i < kEvery; ++i) {
        if (until-- > 0) continue;
        if (i > 0) send_for_beyond(i);
        activate_beyond(i);
        until = warps - 1;
      }
      send_for_beyond(kEvery + until);
    } else {  // zeros, in all rows
#pragma unroll
      for (int i = 0; i < kBuffers; ++i) activate_beyond(i);
    }
    __syncthreads();
    step<0, false>(0);
    step<1, false>(1);
    for (int i = 2; i < end; i += kBuffers) steps<0>(i);
  }
};

template <class T, class Tile, bool kSilu, bool kWhole, bool kEdges>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) gate_rows(Gated a) {
  extern __shared__ float4 shared[];
  begin_kernel();
  GatedStrip<T, Tile, kSilu, kWhole, kEdges>(a, shared).run();
}

struct Launch {
  void (*kernel)(Gated);
  int pairs, columns, most_groups, resident;
  size_t pixel_bytes;  // of a column of `activated`
};

template <class T, class Tile, bool kSilu, bool kWhole, bool kEdges>
Launch launch_of() {
  return {gate_rows<T, Tile, kSilu, kWhole, kEdges>,
          Tile::kLanes,
          Tile::kColumns,
          Tile::kThreads / Tile::kLanes,
          Tile::kBlocks,
          Tile::kBuffers * sizeof(float4) * Tile::kLanes};
}

// Narrow pictures lie in one strip of columns, without edges beside it. What is rarely needed has no kernel of its own.
template <class T>
Launch pick(const Gated& a, bool silu) {
  using Narrow = Tile<256, 2, 1, 1>;
  using Wide = Tile<128, 3, 2, 2>;
  using Roomy = Tile<128, 2, 1, 1>;
  if constexpr (sizeof(T) == 2) {
    bool narrow = a.width <= Narrow::kThreads / Narrow::kLanes * Narrow::kColumns;
    if (silu && a.half % 4 == 0) {
      return narrow ? launch_of<T, Narrow, true, true, false>() : launch_of<T, Wide, true, true, true>();
    }
  }
  if (a.half % 4) return silu ? launch_of<T, Roomy, true, false, true>() : launch_of<T, Roomy, false, false, true>();
  return silu ? launch_of<T, Roomy, true, true, true>() : launch_of<T, Roomy, false, true, true>();
}

// Into strips of how many rows to cut the height. What a strip takes lies between its share of a multiprocessor's
// instructions and the time of one row after the other; both of them with the two rows that it reads twice and with its
// start. The sum of the two puts what was measured on an H200 in the right order.
int choose_strip_rows(int height, int64_t blocks_a_strip, int resident, int multiprocessors) {
  int best = height;
  int64_t best_cost = 0;
  for (int strips = 1; strips <= height; ++strips) {
    auto rows = static_cast<int>(ceil_div(height, strips));
    int64_t blocks = blocks_a_strip * ceil_div(height, rows);
    int64_t cost = ceil_div(blocks, multiprocessors) * (rows + 3) +
                   ceil_div(blocks, int64_t{multiprocessors} * resident) * resident * (rows + 4);
    if (strips == 1 || cost < best_cost) {
      best = rows;
      best_cost = cost;
    }
  }
  return best;
}

}  // namespace

bool supports_depthwise_glu(const StepSpec& spec) {
  const std::string& act = spec.node.attrs.text("act");
  const Shape& x = spec.inputs[0].shape;
  return spec.inputs[1].shape[2] == 3 && (act == "none" || act == "silu") && x.numel() > 0 && x[0] <= kMostGrid &&
         x[1] <= kMostGrid && x[2] <= kMostGrid && x[3] <= (1 << 24);
}

Step make_depthwise_glu(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  Gated a{};
  a.weight_type = spec.inputs[1].dtype;
  if (spec.inputs.size() == 3) a.bias_type = spec.inputs[2].dtype;
  a.height = static_cast<int>(x[1]);
  a.width = static_cast<int>(x[2]);
  a.half = static_cast<int>(x[3] / 2);
  bool silu = spec.node.attrs.text("act") == "silu";
  Launch launch = with_float(spec.inputs[0].dtype, [&](auto zero) { return pick<decltype(zero)>(a, silu); });
  // As few strips of columns as can be, of one width; whole warps.
  int64_t groups = ceil_div(a.width, launch.columns);
  int64_t unit = std::max(1, 32 / launch.pairs);
  groups = ceil_div(ceil_div(groups, ceil_div(groups, launch.most_groups)), unit) * unit;
  a.strips = static_cast<int>(ceil_div(a.width, groups * launch.columns));
  auto threads = static_cast<unsigned>(groups * launch.pairs);
  size_t shared = static_cast<size_t>(groups * launch.columns + 2) * launch.pixel_bytes;
  int64_t slabs = ceil_div(a.half, 2 * launch.pairs);
  a.rows = choose_strip_rows(a.height, slabs * a.strips * x[0], launch.resident,
                             std::max(device_limits().multiprocessors, 1));
  a.rows = std::max(a.rows, static_cast<int>(ceil_div(a.height, kMostGrid / a.strips)));
  dim3 grid(static_cast<unsigned>(slabs), static_cast<unsigned>(a.strips * ceil_div(a.height, a.rows)),
            static_cast<unsigned>(x[0]));
  if (shared > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(launch.kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  }
  Step step;
  step.run = [=](const StepArgs& args) {
    Gated call = a;
    call.x = args.in[0];
    call.w = args.in[1];
    call.bias = args.in.size() == 3 ? args.in[2] : nullptr;
    call.y = args.out;
    start_kernel(launch.kernel, grid, threads, shared, stream_of(args), call);
  };
  return step;
}

}  // namespace kinora::cuda
