#include <algorithm>

#include "cuda/nvfp4.h"
#include "cuda/quantize.cuh"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 128, kBlock = static_cast<int>(kNvfp4Block);

// Squared error of a block of magnitudes with this scale: the sums of core/quantize.cpp in their order.
__device__ float block_error(const float (&x)[kBlock], float scale) {
  constexpr float kRound = 12582912.0f;  // adding 1.5·2^23 and taking it away rounds to a whole number, ties to even
  float inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f, error[kBlock];
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    float v = fminf(__fmul_rn(x[i], inverse), 6.0f);
    float step = v < 2 ? 0.5f : v < 4 ? 1.0f : 2.0f, steps = v < 2 ? 2.0f : v < 4 ? 1.0f : 0.5f;
    float whole = __fsub_rn(__fadd_rn(__fmul_rn(v, steps), kRound), kRound);
    float left = __fsub_rn(x[i], __fmul_rn(__fmul_rn(whole, step), scale));
    error[i] = __fmul_rn(left, left);
  }
#pragma unroll
  for (int half = kBlock / 2; half >= 4; half /= 2) {
#pragma unroll
    for (int i = 0; i < half; ++i) error[i] = __fadd_rn(error[i], error[i + half]);
  }
  return __fadd_rn(__fadd_rn(error[0], error[1]), __fadd_rn(error[2], error[3]));
}

// f4_e2m1 of core/dtype.h: whole steps of 1/2 below 2, of 1 below 4, of 2 above.
__device__ uint32_t fp4_code(float x) {
  float v = fminf(fabsf(x), 6.0f);
  int code = v < 2 ? __float2int_rn(v * 2) : v < 4 ? __float2int_rn(v) + 2 : __float2int_rn(v * 0.5f) + 4;
  return static_cast<uint32_t>(code) | __float_as_uint(x) >> 31 << 3;
}

__device__ uint2 block_codes(const float (&x)[kBlock], float scale) {
  float inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
  uint2 codes = make_uint2(0, 0);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    codes.x |= fp4_code(__fmul_rn(x[i], inverse)) << (4 * i);
    codes.y |= fp4_code(__fmul_rn(x[i + 8], inverse)) << (4 * i);
  }
  return codes;
}

// Returns the largest.
__device__ float block_magnitudes(const float (&x)[kBlock], float (&magnitudes)[kBlock]) {
  float peak = 0;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    magnitudes[i] = fabsf(x[i]);
    peak = fmaxf(peak, magnitudes[i]);
  }
  return peak;
}

struct QuantizedBlock {
  uint2 codes;
  uint8_t scale;
};

__device__ QuantizedBlock quantize_block(const float (&v)[kBlock]) {
  float magnitudes[kBlock], peak = block_magnitudes(v, magnitudes);
  uint8_t six = __nv_cvt_float_to_fp8(__fdiv_rn(peak, 6.0f), __NV_SATFINITE, __NV_E4M3);
  uint8_t four = __nv_cvt_float_to_fp8(__fdiv_rn(peak, 4.0f), __NV_SATFINITE, __NV_E4M3);
  bool better = block_error(magnitudes, fp8_pair(four).x) < block_error(magnitudes, fp8_pair(six).x);
  uint8_t best = better ? four : six;
  return {block_codes(v, fp8_pair(best).x), best};
}

template <class T>
__device__ void load_block(const T* x, float (&values)[kBlock]) {
  constexpr int kSize = Pack<T>::kSize;
#pragma unroll
  for (int p = 0; p < kBlock / kSize; ++p) {
    float part[kSize];
    unpack<T>(*reinterpret_cast<const uint4*>(x + p * kSize), part);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[p * kSize + i] = part[i];
  }
}

// A row for each block of threads, and one for each row that fills up the last tiles; a row is read twice.
template <class T>
__global__ void __launch_bounds__(kThreads) rows_kernel(const T* x, Nvfp4Rows layout, uint8_t* rows) {
  constexpr int kSize = Pack<T>::kSize;
  __shared__ uint32_t shared[kThreads / 32];
  int64_t row = blockIdx.x, blocks = layout.blocks();
  int64_t end = ceil_div(blocks, kScaleTileBlocks) * kScaleTileBlocks;
  if (row >= layout.m) {
    for (int64_t b = threadIdx.x; b < end; b += kThreads) rows[tiled_scale_at(row, b, blocks)] = 0;
    return;
  }
  x += row * layout.k;
  uint32_t bits = 0;
  for (int64_t i = int64_t{threadIdx.x} * kSize; i < layout.k; i += kThreads * kSize) {
    bits = max(bits, magnitude_bits<T>(*reinterpret_cast<const uint4*>(x + i)));
  }
  bits = lanes_max<kThreads>(bits, shared);
  constexpr float kPeak = 2688;  // 6·448
  float peak = __uint_as_float(bits), scale = 0, inverse = 0;
  if (bits >= 0x7f800000u) {
    scale = __uint_as_float(0x7fc00000u);
  } else if (peak >= 0x1p-100f) {
    scale = __fdiv_rn(peak, kPeak);
    inverse = __fdiv_rn(kPeak, peak);
  }
  if (threadIdx.x == 0) reinterpret_cast<float*>(rows + layout.row_scales_at())[row] = scale;
  auto* codes = reinterpret_cast<uint2*>(rows + layout.codes_at() + row * layout.k / 2);
  for (int64_t b = threadIdx.x; b < end; b += kThreads) {
    QuantizedBlock block{make_uint2(0, 0), 0};
    if (b < blocks && inverse != 0) {
      float values[kBlock];
      load_block(x + b * kBlock, values);
#pragma unroll
      for (int i = 0; i < kBlock; ++i) values[i] = __fmul_rn(values[i], inverse);
      block = quantize_block(values);
    }
    if (b < blocks) codes[b] = block.codes;
    rows[tiled_scale_at(row, b, blocks)] = block.scale;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) peak_kernel(const T* x, int64_t count, uint32_t* bits) {
  constexpr int kSize = Pack<T>::kSize;
  __shared__ uint32_t shared[kThreads / 32];
  uint32_t peak = 0;
  int64_t step = int64_t{gridDim.x} * kThreads * kSize;
  for (int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kSize; i < count; i += step) {
    peak = max(peak, magnitude_bits<T>(*reinterpret_cast<const uint4*>(x + i)));
  }
  peak = lanes_max<kThreads>(peak, shared);
  if (threadIdx.x == 0) atomicMax(bits, peak);
}

// A block of values for each thread. The search is that of core/quantize.cpp.
template <class T>
__global__ void __launch_bounds__(kThreads)
    weight_kernel(const T* x, int64_t blocks, float scale_2, uint2* codes, uint8_t* scales) {
  constexpr int kBelow = 3, kAbove = 5, kLargest = 0x7e;
  int64_t b = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (b >= blocks) return;
  float values[kBlock], magnitudes[kBlock];
  load_block(x + b * kBlock, values);
  float peak = block_magnitudes(values, magnitudes);
  auto scale_of = [&](int code) { return __fmul_rn(fp8_pair(static_cast<uint32_t>(code)).x, scale_2); };
  int wanted = __nv_cvt_float_to_fp8(__fdiv_rn(__fdiv_rn(peak, 6.0f), scale_2), __NV_SATFINITE, __NV_E4M3);
  int best = wanted, end = peak > 0 ? min(kLargest, wanted + kAbove) : 0;
  float least = block_error(magnitudes, scale_of(wanted));
  for (int code = max(1, wanted - kBelow); code <= end; ++code) {
    float error = block_error(magnitudes, scale_of(code));
    if (error < least) {
      least = error;
      best = code;
    }
  }
  codes[b] = block_codes(values, scale_of(best));
  scales[b] = static_cast<uint8_t>(best);
}

constexpr int kSpan = 8;  // values of a thread

template <class T>
__global__ void __launch_bounds__(kThreads) decode_kernel(TiledNvfp4 from, T* out) {
  int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kSpan;
  if (at >= from.n * from.k) return;
  int64_t row = at / from.k, block = at % from.k / kBlock;
  uint32_t word = *reinterpret_cast<const uint32_t*>(static_cast<const uint8_t*>(from.codes) + at / 2);
  float factor = fp8_pair(static_cast<const uint8_t*>(from.scales)[tiled_scale_at(row, block, from.k / kBlock)]).x;
  if (from.row_scales) factor = __fmul_rn(factor, from.row_scales[row]);
  constexpr int kSize = Pack<T>::kSize;
#pragma unroll
  for (int p = 0; p < kSpan / kSize; ++p) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      pack.values[i] = from_float<T>(fp4_value(word >> (4 * (p * kSize + i)) & 15u) * factor);
    }
    store_pack(out + at + p * kSize, pack);
  }
}

}  // namespace

bool has_nvfp4_products() { return device_limits().major >= 10; }

void quantize_nvfp4_rows(cudaStream_t stream, DType dtype, const void* x, const Nvfp4Rows& layout, void* rows) {
  if (layout.m * layout.k == 0) return;
  auto blocks = static_cast<unsigned>(ceil_div(layout.m, kScaleTileRows) * kScaleTileRows);
  with_float(dtype, [&]<class T>(T) {
    rows_kernel<<<blocks, kThreads, 0, stream>>>(static_cast<const T*>(x), layout, static_cast<uint8_t*>(rows));
    check(cudaGetLastError());
  });
}

void find_peak(cudaStream_t stream, DType dtype, const void* x, int64_t count, uint32_t* bits) {
  check(cudaMemsetAsync(bits, 0, sizeof *bits, stream));
  if (count == 0) return;
  with_float(dtype, [&]<class T>(T) {
    constexpr int64_t kFull = 8;  // blocks of threads that keep a processor busy
    int64_t blocks =
        std::min(ceil_div(count, int64_t{kThreads} * Pack<T>::kSize), kFull * int64_t{device_limits().multiprocessors});
    peak_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(static_cast<const T*>(x), count, bits);
    check(cudaGetLastError());
  });
}

void quantize_nvfp4_weight(cudaStream_t stream, DType dtype, const void* x, int64_t count, float scale_2, void* codes,
                           void* scales) {
  if (count == 0) return;
  int64_t blocks = count / kBlock;
  with_float(dtype, [&]<class T>(T) {
    weight_kernel<<<static_cast<unsigned>(ceil_div(blocks, int64_t{kThreads})), kThreads, 0, stream>>>(
        static_cast<const T*>(x), blocks, scale_2, static_cast<uint2*>(codes), static_cast<uint8_t*>(scales));
    check(cudaGetLastError());
  });
}

void TiledNvfp4::decode(cudaStream_t stream, DType dtype, void* out) const {
  if (n * k == 0) return;
  auto blocks = static_cast<unsigned>(ceil_div(n * k, int64_t{kThreads} * kSpan));
  with_float(dtype, [&]<class T>(T) {
    decode_kernel<<<blocks, kThreads, 0, stream>>>(*this, static_cast<T*>(out));
    check(cudaGetLastError());
  });
}

}  // namespace kinora::cuda
