// A linear layer of one vector for each item of a batch: all that counts is how fast the weights arrive. A warp
// computes one result of up to four items; the order of a sum is the same for every number of items.
#include "cuda/activation.cuh"
#include "cuda/heads.h"
#include "cuda/kernels.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kRows = 4;

// y [rows, n] = act(x [rows, k] · weight [n, k] + bias [n]) for rows `first` to `first` + Rows; k is a multiple of N.
template <class T, int N, int Rows>
__global__ void __launch_bounds__(kThreads)
    row_linear_kernel(const T* x, const T* weight, const T* bias, T* y, int64_t n, int64_t k, Act act) {
  struct alignas(sizeof(T) * N) Few {
    T values[N];
  };
  int64_t column = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (column >= n) return;
  int64_t lane = threadIdx.x % 32;
  const T* row = weight + column * k;
  float sum[Rows] = {};
#pragma unroll 4
  for (int64_t at = lane * N; at < k; at += 32 * N) {
    Few w = *reinterpret_cast<const Few*>(row + at);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      Few v = *reinterpret_cast<const Few*>(x + r * k + at);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[r] = fmaf(to_float(v.values[i]), to_float(w.values[i]), sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    float total = warp_sum(sum[r]);
    if (bias) total += to_float(bias[column]);
    if (lane == 0) y[r * n + column] = from_float<T>(activate<T>(total, act));
  }
}

template <class T, int N>
void run_rows(const T* x, const T* weight, const T* bias, T* y, int64_t rows, int64_t n, int64_t k, Act act,
              cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(ceil_div(n, kWarps));
  for (int64_t first = 0; first < rows;) {
    auto launch = [&]<int Rows>() {
      row_linear_kernel<T, N, Rows>
          <<<blocks, kThreads, 0, stream>>>(x + first * k, weight, bias, y + first * n, n, k, act);
      check(cudaGetLastError());
      first += Rows;
    };
    int64_t left = rows - first;
    if (left >= kRows) {
      launch.template operator()<kRows>();
    } else if (left >= 2) {
      launch.template operator()<2>();
    } else {
      launch.template operator()<1>();
    }
  }
}

}  // namespace

// Where each item of a batch has one row, so that no other number of items, up to a bound that none reaches, leads
// elsewhere.
bool supports_row_linear(const StepSpec& spec) {
  constexpr int64_t kMostItems = 64;
  const Shape& x = spec.inputs[0].shape;
  if (x.rank() < 2 || x[0] > kMostItems || x.product(1, x.rank() - 1) != 1 || !is_act(spec.node.attrs.text("act")))
    return false;
  for (const TensorSpec& input : spec.inputs) {
    if (input.dtype != spec.output().dtype) return false;
  }
  return x[-1] > 0 && spec.output().shape.numel() > 0;
}

Step make_row_linear(const StepSpec& spec) {
  const Shape &x = spec.inputs[0].shape, &weight = spec.inputs[1].shape;
  DType dtype = spec.output().dtype;
  int64_t rows = x[0], n = weight[0], k = weight[1];
  bool biased = spec.inputs.size() == 3;
  Act act = act_of(spec.node.attrs.text("act"));
  Step step;
  step.run = [=](const StepArgs& args) {
    with_float(dtype, [&]<class T>(T) {
      const T *from = static_cast<const T*>(args.in[0]), *w = static_cast<const T*>(args.in[1]);
      const T* bias = biased ? static_cast<const T*>(args.in[2]) : nullptr;
      T* y = static_cast<T*>(args.out);
      constexpr int kPack = Pack<T>::kSize;
      if (k % kPack == 0 && is_aligned(from, 16) && is_aligned(w, 16)) {
        run_rows<T, kPack>(from, w, bias, y, rows, n, k, act, stream_of(args));
      } else {
        run_rows<T, 1>(from, w, bias, y, rows, n, k, act, stream_of(args));
      }
    });
  };
  return step;
}

}  // namespace kinora::cuda
