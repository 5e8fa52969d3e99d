// Convolution with one filter a channel, channels last, by tiles that lie in shared memory: a warp has a row of the
// tile, a lane two neighbouring channels. Sums are float32, rows above first and columns from the left, as in
// depthwise.cu.
#include "cuda/depthwise.cuh"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace kinora::cuda {
namespace {

constexpr int kRows = 8, kColumns = 32, kThreads = 32 * kRows;    // of a tile of the result
constexpr int kChannels = 64, kPairs = kChannels / 2, kUnit = 8;  // kUnit: channels of 16 bytes
constexpr int kEach = 8;                                          // columns that a lane has at a time

template <int K>
struct Places {
  static constexpr int kHeight = kRows + K - 1, kWidth = kColumns + K - 1;  // of the tile of x
  uint32_t x[kHeight][kWidth][kPairs];
  float2 weight[K * K][kPairs];
};

// Zeros outside the picture.
template <class T, int K>
__device__ void copy_tile(const Depthwise& a, int row, int column, int channel, Places<K>& at) {
  using P = Places<K>;
  const T* image = static_cast<const T*>(a.x) + blockIdx.z * a.image;
  constexpr int kUnits = kChannels / kUnit;
  uint32_t to = shared_address(&at.x);
  for (int i = static_cast<int>(threadIdx.x); i < P::kHeight * P::kWidth * kUnits; i += kThreads) {
    int place = i / kUnits, unit = i % kUnits;
    int y = row - a.padding + place / P::kWidth, x = column - a.padding + place % P::kWidth;
    int first = channel + unit * kUnit;
    bool there = y >= 0 && y < a.height && x >= 0 && x < a.width && first < a.channels;
    const T* from = there ? image + y * a.line + int64_t{x} * a.pixel + first : image;
    cp_async(to + static_cast<uint32_t>(i) * 16, from, there);
  }
  cp_async_commit();
  for (int i = static_cast<int>(threadIdx.x); i < K * K * kPairs; i += kThreads) {
    int k = i / kPairs, first = min(channel + i % kPairs * 2, a.channels - 2);
    auto weight = [&](int c) { return load_float(a.w, a.weight_type, c * a.filter + k / K * a.filter_line + k % K); };
    at.weight[k][i % kPairs] = make_float2(weight(first), weight(first + 1));
  }
  cp_async_wait<0>();
  __syncthreads();
}

template <class T, int K>
__global__ void __launch_bounds__(kThreads, K == 7 ? 2 : 3) tile_kernel(const __grid_constant__ Depthwise a) {
  extern __shared__ __align__(16) unsigned char shared[];
  Places<K>& at = *reinterpret_cast<Places<K>*>(shared);
  begin_kernel();
  int tiles = (a.out_width + kColumns - 1) / kColumns, tile = static_cast<int>(blockIdx.y);
  int row = tile / tiles * kRows, column = tile % tiles * kColumns, channel = static_cast<int>(blockIdx.x) * kChannels;
  copy_tile<T, K>(a, row, column, channel, at);
  int lane = static_cast<int>(threadIdx.x) % 32, inside = static_cast<int>(threadIdx.x) / 32;
  row += inside;
  channel += 2 * lane;
  if (row >= a.out_height || channel >= a.channels) return;
  float2 bias{};
  if (a.bias) bias = {load_float(a.bias, a.bias_type, channel), load_float(a.bias, a.bias_type, channel + 1)};
  T* out =
      static_cast<T*>(a.y) + ((int64_t{blockIdx.z} * a.out_height + row) * a.out_width + column) * a.channels + channel;
#pragma unroll 1
  for (int first = 0; first < kColumns && column + first < a.out_width; first += kEach) {
    float2 sums[kEach];
#pragma unroll
    for (int j = 0; j < kEach; ++j) sums[j] = bias;
#pragma unroll
    for (int ky = 0; ky < K; ++ky) {
      float2 weight[K];
#pragma unroll
      for (int kx = 0; kx < K; ++kx) weight[kx] = at.weight[ky * K + kx][lane];
#pragma unroll
      for (int j = 0; j < kEach + K - 1; ++j) {
        float2 x = Pair<T>::floats(at.x[inside + ky][first + j][lane]);
#pragma unroll
        for (int kx = 0; kx < K; ++kx) {
          if (j - kx < 0 || j - kx >= kEach) continue;
          float2& sum = sums[j - kx];
          sum.x = fmaf(x.x, weight[kx].x, sum.x);
          sum.y = fmaf(x.y, weight[kx].y, sum.y);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if (column + first + j >= a.out_width) break;
      uint32_t two = Pair<T>::of(activate<T>(sums[j].x, a.act), activate<T>(sums[j].y, a.act));
      *reinterpret_cast<uint32_t*>(out + int64_t{a.channels} * (first + j)) = two;
    }
  }
}

template <class T, int K>
Step make(const Depthwise& a, int64_t images) {
  dim3 grid(static_cast<unsigned>(ceil_div(a.channels, kChannels)),
            static_cast<unsigned>(ceil_div(a.out_width, kColumns) * ceil_div(a.out_height, kRows)),
            static_cast<unsigned>(images));
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(tile_kernel<T, K>),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Places<K>)));
  Step step;
  step.run = [=](const StepArgs& args) {
    start_kernel(tile_kernel<T, K>, grid, kThreads, sizeof(Places<K>), stream_of(args), with_pointers(a, args));
  };
  return step;
}

template <class T>
Step make(const Depthwise& a, int64_t images) {
  switch (a.kernel_height) {
    case 3: return make<T, 3>(a, images);
    case 5: return make<T, 5>(a, images);
    default: return make<T, 7>(a, images);
  }
}

}  // namespace

bool depthwise_tiles_take(const Depthwise& a) {
  bool units = (a.channels | a.image | a.line | a.pixel) % kUnit == 0;
  return units && device_limits().shared_bytes >= sizeof(Places<7>) &&
         ceil_div(a.out_width, kColumns) * ceil_div(a.out_height, kRows) <= kMostGrid;
}

Step make_depthwise_tiles(const Depthwise& a, const StepSpec& spec) {
  int64_t images = spec.inputs[0].shape[0];
  return spec.inputs[0].dtype == DType::f16 ? make<__half>(a, images) : make<__nv_bfloat16>(a, images);
}

}  // namespace kinora::cuda
