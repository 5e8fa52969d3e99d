// 3x3 convolution to at most three channels, as at the end of a decoder of pictures, channels last, in 16 bits. Bound
// by memory: the picture is read once. Each pixel of a tile and of the edge around it is multiplied with all taps of
// all filters by the tensor cores; a result then adds the nine products that it is made of, in float32 and the order of
// the taps, whatever its place in the tile. How channels are dealt out among lanes is that of grouped.cu.
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace kinora::cuda {
namespace {

constexpr int kHeight = 16, kWidth = 32;                          // of a tile of results
constexpr int kLine = kWidth + 2, kSeen = kLine * (kHeight + 2);  // pixels that the tile sees
constexpr int kRows = 16, kGroups = (kSeen + kRows - 1) / kRows;  // of pixels, one product each
constexpr int kTaps = 9, kMostOut = 3, kColumnTiles = 4;          // a column for each tap of each filter
constexpr int kPlane = 628;  // from one column's products to the next's: lanes write to different banks
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kChannels = 32;  // that four lanes take of a pixel at a time
constexpr int kAtOnce = 4;     // such parts on their way

static_assert(kTaps * kMostOut <= 8 * kColumnTiles);
static_assert(kPlane >= kGroups * kRows && kPlane % 16 == 4);

struct Narrow {
  const void *x, *w, *bias;  // w [out, 3, 3, in]; bias may be null
  void* y;
  int height, width, in, out;
  Act act;

  __host__ __device__ int parts() const { return in / kChannels; }
  __host__ __device__ int packs() const { return parts() * kColumnTiles * 32; }  // of weights, 16 bytes each
  size_t shared() const { return static_cast<size_t>(packs()) * 16 + sizeof(float) * kTaps * out * kPlane; }
};

// For each part of the channels and each eight columns, the lanes' packs.
template <class T>
__device__ void load_weights(const Narrow& a, uint4* weights) {
  for (int i = static_cast<int>(threadIdx.x); i < a.packs(); i += kThreads) {
    int lane = i % 32, column = i / 32 % kColumnTiles * 8 + lane / 4;
    int channel = i / (32 * kColumnTiles) * kChannels + lane % 4 * 8;
    int tap = column / a.out, filter = column - tap * a.out;
    const T* from = static_cast<const T*>(a.w) + (filter * kTaps + tap) * a.in + channel;
    weights[i] = tap < kTaps ? *reinterpret_cast<const uint4*>(from) : uint4{};
  }
}

// The products of 16 pixels from number `first` of those that the tile at (top, left) sees.
template <class T>
__device__ void multiply(const Narrow& a, const T* picture, int top, int left, int first, const uint4* weights,
                         float* products) {
  int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, quarter = lane % 4;
  const T* from[2];
  bool there[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    int pixel = first + 8 * h + row, line = pixel / kLine;
    int y = top - 1 + line, x = left - 1 + pixel - line * kLine;
    there[h] = pixel < kSeen && y >= 0 && y < a.height && x >= 0 && x < a.width;
    from[h] = picture + (there[h] ? (int64_t{y} * a.width + x) * a.in : 0) + 8 * quarter;
  }
  float sums[kColumnTiles][4] = {};
  for (int part = 0; part < a.parts(); part += kAtOnce) {
    uint4 rows[kAtOnce][2];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        bool read = there[h] && part + n < a.parts();
        rows[n][h] = read ? *reinterpret_cast<const uint4*>(from[h] + (part + n) * kChannels) : uint4{};
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (part + n >= a.parts()) continue;
      const uint32_t step0[4] = {rows[n][0].x, rows[n][1].x, rows[n][0].y, rows[n][1].y};
      const uint32_t step1[4] = {rows[n][0].z, rows[n][1].z, rows[n][0].w, rows[n][1].w};
#pragma unroll
      for (int t = 0; t < kColumnTiles; ++t) {
        uint4 weight = weights[((part + n) * kColumnTiles + t) * 32 + lane];
        mma<T>(sums[t], step0, weight.x, weight.y);
        mma<T>(sums[t], step1, weight.z, weight.w);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kColumnTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int column = 8 * t + 2 * quarter + i % 2;
      if (column < kTaps * a.out) products[column * kPlane + first + row + i / 2 * 8] = sums[t][i];
    }
  }
}

// The tile's results, neighbours in memory by neighbouring threads.
template <class T>
__device__ void add_taps(const Narrow& a, int64_t item, int top, int left, const float* products) {
  const T* bias = static_cast<const T*>(a.bias);
  T* y = static_cast<T*>(a.y) + item * a.height * a.width * a.out;
  for (int i = static_cast<int>(threadIdx.x); i < kHeight * kWidth * a.out; i += kThreads) {
    int pixel = i / a.out, filter = i - pixel * a.out, line = pixel / kWidth, column = pixel - line * kWidth;
    if (top + line >= a.height || left + column >= a.width) continue;
    float sum = bias ? to_float(bias[filter]) : 0.0f;
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      sum += products[(tap * a.out + filter) * kPlane + (line + tap / 3) * kLine + column + tap % 3];
    }
    y[(int64_t{top + line} * a.width + left + column) * a.out + filter] = from_float<T>(activate<T>(sum, a.act));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) narrow_kernel(const __grid_constant__ Narrow a) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto* weights = reinterpret_cast<uint4*>(shared);
  auto* products = reinterpret_cast<float*>(weights + a.packs());
  begin_kernel();
  int top = static_cast<int>(blockIdx.y) * kHeight, left = static_cast<int>(blockIdx.x) * kWidth;
  int64_t item = blockIdx.z;
  const T* picture = static_cast<const T*>(a.x) + item * a.height * a.width * a.in;
  load_weights<T>(a, weights);
  __syncthreads();
  for (int group = static_cast<int>(threadIdx.x) / 32; group < kGroups; group += kWarps) {
    multiply<T>(a, picture, top, left, group * kRows, weights, products);
  }
  __syncthreads();
  add_taps<T>(a, item, top, left, products);
}

Narrow describe(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &y = spec.output().shape;
  Narrow a{};
  a.height = static_cast<int>(x[1]), a.width = static_cast<int>(x[2]);
  a.in = static_cast<int>(x[3]), a.out = static_cast<int>(y[3]);
  a.act = act_of(spec.node.attrs.text("act"));
  return a;
}

}  // namespace

bool supports_narrow_conv2d(const StepSpec& spec) {
  constexpr int64_t kMostGrid = 65535, kMostIn = 1024;
  const Attrs& attrs = spec.node.attrs;
  const Shape &x = spec.inputs[0].shape, &w = spec.inputs[1].shape;
  bool same = attrs.integer("stride") == 1 && attrs.integer("padding") == 1 && attrs.integer("groups") == 1;
  if (attrs.text("weight_layout") != "ohwi" || w[1] != 3 || w[2] != 3 || !same || !is_act(attrs.text("act")))
    return false;
  if (w[0] > kMostOut || x[3] % kChannels != 0 || x[3] > kMostIn || spec.output().shape.numel() == 0) return false;
  if (x[0] > kMostGrid || x[1] > kMostGrid * kHeight || x[2] > kMostGrid * kHeight) return false;
  for (const TensorSpec& input : spec.inputs) {
    if (input.dtype != spec.output().dtype || input.dtype == DType::f32) return false;
  }
  return device_limits().shared_bytes >= describe(spec).shared();
}

Step make_narrow_conv2d(const StepSpec& spec) {
  Narrow plan = describe(spec);
  auto kernel = spec.output().dtype == DType::bf16 ? narrow_kernel<__nv_bfloat16> : narrow_kernel<__half>;
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(device_limits().shared_bytes)));
  dim3 grid(static_cast<unsigned>(ceil_div(plan.width, kWidth)), static_cast<unsigned>(ceil_div(plan.height, kHeight)),
            static_cast<unsigned>(spec.output().shape[0]));
  Step step;
  step.run = [=](const StepArgs& args) {
    Narrow a = plan;
    a.x = args.in[0], a.w = args.in[1], a.bias = args.in.size() == 3 ? args.in[2] : nullptr;
    a.y = args.out;
    start_kernel(kernel, grid, kThreads, a.shared(), stream_of(args), a);
  };
  return step;
}

}  // namespace kinora::cuda
