// Grouped 1x1 convolution, channels last: many small products over the same pixels, bound by memory. Groups of 32 by 32
// channels in 16 bits run on the matrix units, straight from memory and back: a group's 64 bytes of a pixel are four
// lanes of 16. The order of channels within a fragment is chosen so that no lane needs another's.
#include <algorithm>

#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "graph/views.h"

namespace kinora::cuda {
namespace {

constexpr int kChannels = 32;  // in and out, of a group
constexpr int kWarps = 8;      // neighbouring groups of a block
constexpr int kTile = 16;      // pixels of one product
constexpr int kAtOnce = 4;     // tiles that a warp has on their way

struct Grouped {
  const void *x, *w, *bias;  // bias may be null
  void* y;
  DType weight_type, bias_type;
  Act act;
  int64_t pixels, row;  // row: elements from one pixel to the next in y
  int groups, in, out;  // channels of a group
  int64_t pixels_a_warp;
};

template <class T>
__device__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ void multiply<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ void multiply<__half>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The matrix unit's lane l = 4r + q holds of A the rows r and r + 8, of C likewise, of B the column r; of the 16 summed
// channels those numbered 2q, 2q + 1, 2q + 8, 2q + 9. Step s of two takes for these the lane's own 8q + 4s + {0, 1, 2,
// 3}; column j of tile t of four is output channel 8(j / 2) + 2t + j % 2, so that a lane's results are 8q .. 8q + 7.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) by_matrix_units(Grouped a) {
  begin_kernel();
  int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, quarter = lane % 4;
  int group = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (group >= a.groups) return;
  unsigned weight[4][4];  // per tile, the lane's 8 input channels
#pragma unroll
  for (int t = 0; t < 4; ++t) {
    int out = group * kChannels + 8 * (row / 2) + 2 * t + row % 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      T pair[2];
      for (int e = 0; e < 2; ++e) {
        pair[e] = from_float<T>(load_float(a.w, a.weight_type, int64_t{out} * kChannels + 8 * quarter + 2 * i + e));
      }
      memcpy(&weight[t][i], pair, 4);
    }
  }
  float bias[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    bias[i] = a.bias ? load_float(a.bias, a.bias_type, group * kChannels + 8 * quarter + i) : 0.0f;
  }

  int64_t stride = int64_t{a.groups} * kChannels, own = group * kChannels + 8 * quarter;
  const T* x = static_cast<const T*>(a.x) + own;
  T* y = static_cast<T*>(a.y) + own;
  int64_t first = blockIdx.y * a.pixels_a_warp, end = min(first + a.pixels_a_warp, a.pixels);
  for (int64_t pixel = first; pixel < end; pixel += kTile * kAtOnce) {
    uint4 rows[kAtOnce][2];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int64_t p = pixel + n * kTile + 8 * h + row;
        rows[n][h] = p < end ? *reinterpret_cast<const uint4*>(x + p * stride) : uint4{};
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      const unsigned step0[4] = {rows[n][0].x, rows[n][1].x, rows[n][0].y, rows[n][1].y};
      const unsigned step1[4] = {rows[n][0].z, rows[n][1].z, rows[n][0].w, rows[n][1].w};
      float sums[4][4] = {};
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        multiply<T>(sums[t], step0, weight[t][0], weight[t][1]);
        multiply<T>(sums[t], step1, weight[t][2], weight[t][3]);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int64_t p = pixel + n * kTile + 8 * h + row;
        if (p >= end) continue;
        Pack<T> pack;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          pack.values[i] = from_float<T>(activate<T>(sums[i / 2][2 * h + i % 2] + bias[i], a.act));
        }
        store_pack(y + p * a.row, pack);
      }
    }
  }
}

// Any extents and types; one output element a thread.
template <class T>
__global__ void one_by_one(Grouped a, int64_t count) {
  begin_kernel();
  int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  int64_t channels_out = int64_t{a.groups} * a.out, pixel = i / channels_out, channel = i % channels_out;
  const T* x = static_cast<const T*>(a.x) + (pixel * a.groups + channel / a.out) * a.in;
  float sum = a.bias ? load_float(a.bias, a.bias_type, channel) : 0.0f;
  for (int k = 0; k < a.in; ++k) sum = fmaf(to_float(x[k]), load_float(a.w, a.weight_type, channel * a.in + k), sum);
  static_cast<T*>(a.y)[pixel * a.row + channel] = from_float<T>(activate<T>(sum, a.act));
}

Grouped with_pointers(Grouped a, const StepArgs& args) {
  a.x = args.in[0];
  a.w = args.in[1];
  a.bias = args.in.size() == 3 ? args.in[2] : nullptr;
  a.y = args.out;
  return a;
}

template <class T>
Step make_matrix_units(Grouped a) {
  // Few pixels a warp while multiprocessors lack blocks, many for the sake of the weights' loads when they do not.
  int64_t across = ceil_div(a.groups, kWarps), wanted = 8 * int64_t{std::max(device_limits().multiprocessors, 1)};
  int64_t portion = kTile * kAtOnce, portions = ceil_div(a.pixels, portion);
  int64_t down = std::clamp<int64_t>(wanted / across, 1, std::min<int64_t>(portions, 65535));
  a.pixels_a_warp = ceil_div(portions, down) * portion;
  dim3 grid(static_cast<unsigned>(across), static_cast<unsigned>(ceil_div(a.pixels, a.pixels_a_warp)));
  Step step;
  step.run = [=](const StepArgs& args) {
    start_kernel(by_matrix_units<T>, grid, 32 * kWarps, 0, stream_of(args), with_pointers(a, args));
  };
  return step;
}

}  // namespace

bool supports_grouped_conv2d(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  const Shape& w = spec.inputs[1].shape;
  return attrs.text("weight_layout") == "oihw" && attrs.integer("groups") > 1 && w[2] == 1 && w[3] == 1 &&
         attrs.integer("stride") == 1 && attrs.integer("padding") == 0 && is_act(attrs.text("act")) &&
         spec.output().shape.numel() > 0 && w[0] <= (1 << 24);
}

Step make_grouped_conv2d(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &w = spec.inputs[1].shape;
  Grouped a{};
  a.weight_type = spec.inputs[1].dtype;
  if (spec.inputs.size() == 3) a.bias_type = spec.inputs[2].dtype;
  a.act = act_of(spec.node.attrs.text("act"));
  a.pixels = x.product(0, 3);
  a.row = reshaped_strides(spec.output().shape, spec.out_strides, {a.pixels, w[0]})[0];
  a.groups = static_cast<int>(spec.node.attrs.integer("groups"));
  a.in = static_cast<int>(w[1]);
  a.out = static_cast<int>(w[0]) / a.groups;
  if (spec.inputs[0].dtype != DType::f32 && a.in == kChannels && a.out == kChannels) {
    return spec.inputs[0].dtype == DType::f16 ? make_matrix_units<__half>(a) : make_matrix_units<__nv_bfloat16>(a);
  }
  return with_float(spec.inputs[0].dtype, [&](auto zero) {
    using T = decltype(zero);
    int64_t count = spec.output().shape.numel();
    Step step;
    step.run = [=](const StepArgs& args) {
      start_kernel(one_by_one<T>, static_cast<unsigned>(ceil_div(count, 256)), 256, 0, stream_of(args),
                   with_pointers(a, args), count);
    };
    return step;
  });
}

}  // namespace kinora::cuda
