// Dense convolution of films on the tensor cores, stride one and no padding, as a product of [positions, taps · in] by
// [taps · in, out] whose first matrix is never made: each 64 channels of a tap are gathered from the film as they are
// needed. Channels last; weights [out, taps, in].
#include "cuda/activation.cuh"
#include "cuda/epilogue.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace kinora::cuda {
namespace {

constexpr int kDepth = 64;          // channels of one step
constexpr int kPacks = kDepth / 8;  // 16 bytes each
constexpr int kStages = 4;
constexpr int kThreads = 256, kWarpRows = 64, kWarpColumns = 64;

struct Film {
  const void *x, *w, *bias;  // bias may be null
  void* y;
  int height, width;  // of x
  int out_height, out_width;
  int kernel_t, kernel_h, kernel_w, in, out;  // channels
  int64_t positions;                          // of y
  int column_tiles;
  Act act;
};

// Element (row, pack) of a tile lies at its row's pack (pack ^ row % 8), so that eight rows' packs of an ldmatrix fall
// into different banks.
__device__ inline int place(int row, int pack) { return (row * kPacks + (pack ^ (row % 8))) * 16; }

template <class T, int kRowWarps, int kColumnWarps>
__global__ void __launch_bounds__(kThreads, 1) film_kernel(const __grid_constant__ Film a) {
  constexpr int kRows = kRowWarps * kWarpRows, kColumns = kColumnWarps * kWarpColumns;
  constexpr int kStageBytes = (kRows + kColumns) * kDepth * 2, kLines = kThreads / kPacks;
  static_assert(kRowWarps * kColumnWarps * 32 == kThreads);
  extern __shared__ __align__(128) unsigned char shared[];
  begin_kernel();
  int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  int64_t first = static_cast<int64_t>(blockIdx.x / static_cast<unsigned>(a.column_tiles)) * kRows;
  int column = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.column_tiles)) * kColumns;
  const T *x = static_cast<const T*>(a.x), *w = static_cast<const T*>(a.w);
  int line = thread / kPacks, pack = thread % kPacks;
  int packs_in = a.in / 8, depth = a.kernel_t * a.kernel_h * a.kernel_w * a.in, steps = depth / kDepth;

  // Where this thread's rows of the tile begin in the film, in packs; rows past the end read the film's start.
  uint32_t from[kRows / kLines];
  uint32_t there = 0;
#pragma unroll
  for (int i = 0; i < kRows / kLines; ++i) {
    int64_t p = first + line + i * kLines;
    if (p < a.positions) there |= 1u << i;
    uint32_t at = p < a.positions ? static_cast<uint32_t>(p) : 0;
    uint32_t row = at / static_cast<uint32_t>(a.out_width), c = at - row * static_cast<uint32_t>(a.out_width);
    uint32_t frame = row / static_cast<uint32_t>(a.out_height), r = row - frame * static_cast<uint32_t>(a.out_height);
    from[i] = ((frame * static_cast<uint32_t>(a.height) + r) * static_cast<uint32_t>(a.width) + c) *
                  static_cast<uint32_t>(packs_in) +
              static_cast<uint32_t>(pack);
  }
  const T* of_weights = w + static_cast<int64_t>(column + line) * depth + pack * 8;
  int columns_left = a.out - column - line;

  // The next step to be loaded: its tap and first channel.
  int channel = 0, dx = 0, dy = 0;
  uint32_t tap = 0;  // packs from a position to what the tap sees
  auto load = [&](int step) {
    unsigned char* to = shared + step % kStages * kStageBytes;
    uint32_t base = shared_address(to), offset = tap + static_cast<uint32_t>(channel / 8);
#pragma unroll
    for (int i = 0; i < kRows / kLines; ++i) {
      bool ok = there >> i & 1u;
      int64_t at = ok ? static_cast<int64_t>(from[i] + offset) * 8 : 0;
      cp_async(base + static_cast<uint32_t>(place(line + i * kLines, pack)), x + at, ok);
    }
    base += kRows * kDepth * 2;
#pragma unroll
    for (int i = 0; i < kColumns / kLines; ++i) {
      bool ok = i * kLines < columns_left;
      const T* at = ok ? of_weights + static_cast<int64_t>(i) * kLines * depth + int64_t{step} * kDepth : w;
      cp_async(base + static_cast<uint32_t>(place(line + i * kLines, pack)), at, ok);
    }
    channel += kDepth;
    if (channel < a.in) return;
    channel = 0;
    tap += static_cast<uint32_t>(packs_in);
    if (++dx < a.kernel_w) return;
    dx = 0;
    tap += static_cast<uint32_t>((a.width - a.kernel_w) * packs_in);
    if (++dy < a.kernel_h) return;
    dy = 0;
    tap += static_cast<uint32_t>((a.height - a.kernel_h) * a.width * packs_in);
  };
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < steps) load(s);
    cp_async_commit();
  }

  int row_at = warp / kColumnWarps * kWarpRows, column_at = warp % kColumnWarps * kWarpColumns;
  float sums[4][8][4] = {};
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // the step's tiles are there, and everyone is done with those of the step before
    if (step + kStages - 1 < steps) load(step + kStages - 1);
    cp_async_commit();
    uint32_t rows_at = shared_address(shared + step % kStages * kStageBytes), columns_at = rows_at + kRows * kDepth * 2;
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t rows[4][4], columns[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        int r = row_at + 16 * i + lane % 16;
        ldmatrix(rows[i], rows_at + static_cast<uint32_t>(place(r, 2 * k + lane / 16)));
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int c = column_at + 16 * j + lane / 16 * 8 + lane % 8;
        ldmatrix(columns[j], columns_at + static_cast<uint32_t>(place(c, 2 * k + lane / 8 % 2)));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          mma<T>(sums[i][2 * j], rows[i], columns[j][0], columns[j][1]);
          mma<T>(sums[i][2 * j + 1], rows[i], columns[j][2], columns[j][3]);
        }
      }
    }
  }
  cp_async_wait<0>();

  const T* bias = static_cast<const T*>(a.bias);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    int c = column + column_at + 8 * j + lane % 4 * 2;
    if (c >= a.out) continue;
    float low = bias ? to_float(bias[c]) : 0.0f, high = bias ? to_float(bias[c + 1]) : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      int64_t p = first + row_at + 8 * i + lane / 4;
      if (p >= a.positions) continue;
      const float* pair = sums[i / 2][j] + i % 2 * 2;
      *reinterpret_cast<uint32_t*>(static_cast<T*>(a.y) + p * a.out + c) =
          Pair<T>::of(activate<T>(pair[0] + low, a.act), activate<T>(pair[1] + high, a.act));
    }
  }
}

struct Tiles {
  void (*kernel)(Film);
  int rows, columns;
  size_t shared() const { return static_cast<size_t>(rows + columns) * kDepth * 2 * kStages; }
};

// 256 columns where there are as many; else 256 rows.
template <class T>
Tiles tiles_for(int64_t out) {
  if (out % 256 == 0 || out > 512) return {film_kernel<T, 2, 4>, 128, 256};
  return {film_kernel<T, 4, 2>, 256, 128};
}

}  // namespace

bool supports_film_conv3d(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  if (attrs.text("weight_layout") != "othwi" || attrs.integer("groups") != 1 || !is_act(attrs.text("act")))
    return false;
  if (attrs.ints("stride") != Ints{1, 1, 1} || attrs.ints("padding") != Ints{0, 0, 0}) return false;
  if (spec.output().dtype == DType::f32 || x[4] % kDepth != 0 || y[4] % 8 != 0 || y.numel() == 0) return false;
  for (const TensorSpec& input : spec.inputs) {
    if (input.dtype != spec.output().dtype) return false;
  }
  constexpr int64_t kMost = int64_t{1} << 31;
  size_t shared = Tiles{nullptr, 128, 256}.shared();
  return x.product(1, 5) / 8 < kMost && y.product(1, 4) < kMost && device_limits().shared_bytes >= shared;
}

Step make_film_conv3d(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &w = spec.inputs[1].shape, &y = spec.output().shape;
  Film a{};
  a.height = static_cast<int>(x[2]), a.width = static_cast<int>(x[3]);
  a.out_height = static_cast<int>(y[2]), a.out_width = static_cast<int>(y[3]);
  a.kernel_t = static_cast<int>(w[1]), a.kernel_h = static_cast<int>(w[2]), a.kernel_w = static_cast<int>(w[3]);
  a.in = static_cast<int>(x[4]), a.out = static_cast<int>(y[4]);
  a.positions = y.product(1, 4);
  a.act = act_of(spec.node.attrs.text("act"));
  bool biased = spec.inputs.size() == 3;
  Tiles tiles = spec.output().dtype == DType::bf16 ? tiles_for<__nv_bfloat16>(a.out) : tiles_for<__half>(a.out);
  a.column_tiles = static_cast<int>(ceil_div(a.out, tiles.columns));
  auto blocks = static_cast<unsigned>(ceil_div(a.positions, tiles.rows) * a.column_tiles);
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(tiles.kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(tiles.shared())));
  int64_t batch = x[0], x_bytes = x.product(1, 5) * 2, y_bytes = y.product(1, 5) * 2;
  Step step;
  step.run = [=](const StepArgs& args) {
    for (int64_t b = 0; b < batch; ++b) {
      Film now = a;
      now.x = static_cast<const std::byte*>(args.in[0]) + b * x_bytes;
      now.w = args.in[1];
      now.bias = biased ? args.in[2] : nullptr;
      now.y = static_cast<std::byte*>(args.out) + b * y_bytes;
      start_kernel(tiles.kernel, blocks, kThreads, tiles.shared(), stream_of(args), now);
    }
  };
  return step;
}

}  // namespace kinora::cuda
