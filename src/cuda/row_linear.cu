// A linear layer of one vector for each item of a batch: all that counts is how fast the weights arrive, which may be
// codes of 8 or 4 bits. A warp computes one result, or two from codes, of up to four items; the order of a sum is the
// same for every number of items.
#include "cuda/activation.cuh"
#include "cuda/heads.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/quantize.cuh"
#include "graph/views.h"
#include "ops/quantize.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kRows = 4;

// y [rows, n] = act(x [rows, k] · weight [n, k] + bias [n]) for rows `first` to `first` + Rows; k is a multiple of N.
template <class T, int N, int Rows>
__global__ void __launch_bounds__(kThreads)
    row_linear_kernel(const T* x, const T* weight, const T* bias, T* y, int64_t n, int64_t k, Act act) {
  begin_kernel();
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

// Calls launch<Rows>(first) until all rows are done, kRows or fewer at a time.
template <class Launch>
void for_rows(int64_t rows, const Launch& launch) {
  for (int64_t first = 0; first < rows;) {
    auto next = [&]<int Rows>() {
      launch.template operator()<Rows>(first);
      first += Rows;
    };
    int64_t left = rows - first;
    if (left >= kRows) {
      next.template operator()<kRows>();
    } else if (left >= 2) {
      next.template operator()<2>();
    } else {
      next.template operator()<1>();
    }
  }
}

template <class T, int N>
void run_rows(const T* x, const T* weight, const T* bias, T* y, int64_t rows, int64_t n, int64_t k, Act act,
              cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(ceil_div(n, kWarps));
  for_rows(rows, [&]<int Rows>(int64_t first) {
    start_kernel(row_linear_kernel<T, N, Rows>, blocks, kThreads, 0, stream, x + first * k, weight, bias, y + first * n,
                 n, k, act);
  });
}

// A weight's codes, k of them a row; `scales`: a float for each row or, of fp4, a byte for each 16 codes.
enum class Codes : uint8_t { int8, fp8, fp4 };
struct CodedWeight {
  const uint8_t* codes;
  const void* scales;
  const float* scale_2;
};

constexpr int kSpan = kNvfp4Block, kCodedThreads = 128, kCodedWarps = kCodedThreads / 32, kColumns = 2;

// Some neighbouring codes as they are stored.
template <Codes C>
struct Raw {
  uint4 codes;
};
template <>
struct Raw<Codes::fp4> {
  uint2 codes;
  uint8_t scale;
};

template <Codes C>
__device__ Raw<C> load_raw(const CodedWeight& weight, int64_t at) {
  if constexpr (C == Codes::fp4) {
    return {*reinterpret_cast<const uint2*>(weight.codes + at / 2),
            static_cast<const uint8_t*>(weight.scales)[at / kSpan]};
  } else {
    return {*reinterpret_cast<const uint4*>(weight.codes + at)};
  }
}

// The codes' values; those of fp4 are 2^-14 of theirs.
template <Codes C>
__device__ void decode(const Raw<C>& raw, float (&out)[kSpan]) {
  if constexpr (C == Codes::fp4) {
    const uint32_t words[2] = {raw.codes.x, raw.codes.y};
#pragma unroll
    for (int w = 0; w < 2; ++w) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // the codes i and i + 4 of a word are in the places of halves
        uint32_t pair = words[w] >> (4 * i), bits = (pair & 0x00080008u) << 12 | (pair & 0x00070007u) << 9;
        float2 both = __half22float2(*reinterpret_cast<const __half2*>(&bits));
        out[8 * w + i] = both.x;
        out[8 * w + i + 4] = both.y;
      }
    }
  } else {
    const uint32_t words[4] = {raw.codes.x, raw.codes.y, raw.codes.z, raw.codes.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (C == Codes::fp8) {
        float2 low = fp8_pair(words[w]), high = fp8_pair(words[w] >> 16);
        out[4 * w] = low.x, out[4 * w + 1] = low.y, out[4 * w + 2] = high.x, out[4 * w + 3] = high.y;
      } else {  // a code and 128 as the last bits of 2^23
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
          uint32_t bits = __byte_perm(words[w] ^ 0x80808080u, 0x4b000000u, 0x7440u + i);
          out[4 * w + static_cast<int>(i)] = __uint_as_float(bits) - 8388736.0f;
        }
      }
    }
  }
}

template <class T>
__device__ void load_span(const T* x, float (&out)[kSpan]) {
  constexpr int kSize = Pack<T>::kSize;
#pragma unroll
  for (int p = 0; p < kSpan / kSize; ++p) {
    Pack<T> pack = load_pack(x + p * kSize);
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[p * kSize + i] = to_float(pack.values[i]);
  }
}

struct CodedFinish {
  const void* bias;
  DType bias_type;
  Act act;
};

// As row_linear_kernel; k is a multiple of 16, and rows of y are `row` elements apart.
template <class T, Codes C, int Rows>
__global__ void __launch_bounds__(kCodedThreads)
    coded_row_kernel(const T* x, CodedWeight weight, CodedFinish finish, T* y, int64_t n, int64_t k, int64_t row) {
  begin_kernel();
  int64_t first = (int64_t{blockIdx.x} * kCodedWarps + threadIdx.x / 32) * kColumns;
  if (first >= n) return;
  int lane = static_cast<int>(threadIdx.x) % 32;
  int64_t columns[kColumns];
#pragma unroll
  for (int c = 0; c < kColumns; ++c) columns[c] = first + c < n ? first + c : n - 1;
  float sum[kColumns][Rows] = {};
#pragma unroll 2
  for (int64_t at = int64_t{lane} * kSpan; at < k; at += 32 * kSpan) {
    Raw<C> raw[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) raw[c] = load_raw<C>(weight, columns[c] * k + at);
    float values[kColumns][kSpan];
#pragma unroll
    for (int c = 0; c < kColumns; ++c) decode<C>(raw[c], values[c]);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      float v[kSpan];
      load_span(x + r * k + at, v);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        float part = C == Codes::fp4 ? 0.0f : sum[c][r];
#pragma unroll
        for (int i = 0; i < kSpan; ++i) part = fmaf(v[i], values[c][i], part);
        if constexpr (C == Codes::fp4) part = fmaf(part, fp8_pair(raw[c].scale).x * 0x1p14f, sum[c][r]);
        sum[c][r] = part;
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    float scale = C == Codes::fp4 ? *weight.scale_2 : static_cast<const float*>(weight.scales)[columns[c]];
    float bias = finish.bias ? load_float(finish.bias, finish.bias_type, columns[c]) : 0.0f;
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      float total = fmaf(warp_sum(sum[c][r]), scale, bias);
      if (lane == 0 && first + c < n) y[r * row + columns[c]] = from_float<T>(activate<T>(total, finish.act));
    }
  }
}

template <class T, Codes C>
void run_coded_rows(const T* x, const CodedWeight& weight, const CodedFinish& finish, T* y, int64_t rows, int64_t n,
                    int64_t k, int64_t row, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(ceil_div(n, kCodedWarps * kColumns));
  for_rows(rows, [&]<int Rows>(int64_t first) {
    start_kernel(coded_row_kernel<T, C, Rows>, blocks, kCodedThreads, 0, stream, x + first * k, weight, finish,
                 y + first * row, n, k, row);
  });
}

// Where each item of a batch has one row, so that no other number of items, up to a bound that none reaches, leads
// elsewhere.
bool has_row_an_item(const StepSpec& spec) {
  constexpr int64_t kMostItems = 64;
  const Shape& x = spec.inputs[0].shape;
  return x.rank() >= 2 && x[0] <= kMostItems && x.product(1, x.rank() - 1) == 1 &&
         is_act(spec.node.attrs.text("act")) && x[-1] > 0 && spec.output().shape.numel() > 0;
}

}  // namespace

bool supports_row_linear(const StepSpec& spec) {
  for (const TensorSpec& input : spec.inputs) {
    if (input.dtype != spec.output().dtype) return false;
  }
  return has_row_an_item(spec);
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

bool supports_quantized_row_linear(const StepSpec& spec) {
  QuantizedInputs at(spec.node.attrs);
  return !quantizes_rows(at.format) && !at.gate && !at.residual && has_row_an_item(spec);
}

Step make_quantized_row_linear(const StepSpec& spec) {
  QuantizedInputs at(spec.node.attrs);
  const Shape& out = spec.output().shape;
  int64_t rows = spec.inputs[0].shape[0], k = spec.inputs[0].shape[-1], n = out[-1];
  Ints strides = reshaped_strides(out, spec.out_strides, {rows, n});
  int64_t row = rows > 1 && !strides.empty() ? strides[0] : n;
  DType dtype = spec.output().dtype, bias_type = at.bias ? spec.inputs[at.bias].dtype : dtype;
  Act act = act_of(spec.node.attrs.text("act"));
  Step step;
  step.run = [=](const StepArgs& args) {
    CodedWeight weight{static_cast<const uint8_t*>(args.in[at.codes]), args.in[at.scale],
                       at.scale_2 ? static_cast<const float*>(args.in[at.scale_2]) : nullptr};
    CodedFinish finish{at.bias ? args.in[at.bias] : nullptr, bias_type, act};
    with_float(dtype, [&]<class T>(T) {
      auto run = [&]<Codes C>() {
        run_coded_rows<T, C>(static_cast<const T*>(args.in[0]), weight, finish, static_cast<T*>(args.out), rows, n, k,
                             row, stream_of(args));
      };
      if (at.format == QuantFormat::nvfp4) {
        run.template operator()<Codes::fp4>();
      } else if (code_type(at.format) == DType::i8) {
        run.template operator()<Codes::int8>();
      } else {
        run.template operator()<Codes::fp8>();
      }
    });
  };
  return step;
}

}  // namespace kinora::cuda
