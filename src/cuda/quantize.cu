// Rows of activations to codes of 8 bits, and codes of 8 and 4 bits back to numbers: core/quantize.h has the formats.
#include "core/quantize.h"
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.h"
#include "cuda/nvfp4.h"
#include "cuda/quantize.cuh"
#include "cuda/quantize.h"
#include "graph/views.h"

namespace kinora::cuda {
namespace {

QuantFormat format_of(const StepSpec& spec) { return quant_format_from_name(spec.node.attrs.text("format")); }

template <class T>
__device__ Pack<T> load_any(const T* address, bool packed) {
  if (packed) return load_pack(address);
  Pack<T> pack;
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) pack.values[i] = address[i];
  return pack;
}

// Where the rows' values come from, a pack at a time, as words.
template <class T>
struct Plain {
  using Type = T;
  const T* x;
  int64_t k;
  struct Row {
    const T* x;
    __device__ uint4 load(int64_t column) const { return *reinterpret_cast<const uint4*>(x + column); }
  };
  __device__ Row row(uint32_t i) const { return {x + i * k}; }
};

template <class T>
struct Gated {
  using Type = T;
  const T *a, *b;
  Layout<2> rows;
  Act act;
  bool packed;
  struct Row {
    const T *a, *b;
    Act act;
    bool packed;
    __device__ uint4 load(int64_t column) const {
      Pack<T> p = load_any(a + column, packed), q = load_any(b + column, packed);
#pragma unroll
      for (int i = 0; i < Pack<T>::kSize; ++i) {
        p.values[i] = from_float<T>(activate_gate<T>(to_float(p.values[i]), act) * to_float(q.values[i]));
      }
      uint4 words;
      memcpy(&words, &p, sizeof words);
      return words;
    }
  };
  __device__ Row row(uint32_t i) const {
    int64_t at[2];
    rows.offsets(i, at);
    return {a + at[0], b + at[1], act, packed};
  }
};

template <class T>
__device__ void store_pack_codes(uint8_t* codes, uint4 pack, float inverse, bool fp8) {
  float values[Pack<T>::kSize];
  unpack<T>(pack, values);
  store_codes(codes, values, inverse, fp8);
}

// Of a block in which `lanes` threads share a row.
constexpr int block_size(int lanes) { return 128 % lanes == 0 ? 128 : lanes; }

// `Lanes` threads hold a row of at most Lanes · Packs packs between the search for its peak and its codes. Several
// blocks share a processor, so that one loads while another writes.
template <class Source, int Lanes, int Packs>
__global__ void __launch_bounds__(block_size(Lanes), 1024 / block_size(Lanes))
    rows_kernel(const __grid_constant__ Source source, RowsOut out, int64_t m, int64_t k) {
  using T = typename Source::Type;
  constexpr int kBlock = block_size(Lanes), kSize = Pack<T>::kSize;
  __shared__ uint32_t shared[kBlock / 32];
  begin_kernel();
  int lane = static_cast<int>(threadIdx.x) % Lanes;
  int64_t row = int64_t{blockIdx.x} * (kBlock / Lanes) + static_cast<int>(threadIdx.x) / Lanes;
  bool active = row < m;
  int width = active ? static_cast<int>(k) : 0;
  uint4 packs[Packs];
  uint32_t peak = 0;
  if (active) {
    auto from = source.row(static_cast<uint32_t>(row));
#pragma unroll
    for (int p = 0; p < Packs; ++p) {
      int column = (p * Lanes + lane) * kSize;
      if (column < width) packs[p] = from.load(column);
    }
  }
#pragma unroll
  for (int p = 0; p < Packs; ++p) {
    if ((p * Lanes + lane) * kSize < width) peak = max(peak, magnitude_bits<T>(packs[p]));
  }
  peak = lanes_max<Lanes>(peak, shared);
  if (!active) return;
  RowScaleOnDevice scale = row_scale_of(peak, out.fp8);
  if (lane == 0) out.scales[row] = scale.scale;
  uint8_t* codes = out.codes + row * k;
#pragma unroll
  for (int p = 0; p < Packs; ++p) {
    int column = (p * Lanes + lane) * kSize;
    if (column < width) store_pack_codes<T>(codes + column, packs[p], scale.inverse, out.fp8);
  }
}

// Any length: the row is read twice.
constexpr int kWideThreads = 256;
template <class Source>
__global__ void wide_rows_kernel(const __grid_constant__ Source source, RowsOut out, int64_t k) {
  using T = typename Source::Type;
  constexpr int kSize = Pack<T>::kSize;
  __shared__ uint32_t shared[kWideThreads / 32];
  begin_kernel();
  int64_t row = blockIdx.x, start = int64_t{threadIdx.x} * kSize;
  auto from = source.row(blockIdx.x);
  uint32_t peak = 0;
  for (int64_t c = start; c < k; c += kWideThreads * kSize) peak = max(peak, magnitude_bits<T>(from.load(c)));
  RowScaleOnDevice scale = row_scale_of(lanes_max<kWideThreads>(peak, shared), out.fp8);
  if (threadIdx.x == 0) out.scales[row] = scale.scale;
  for (int64_t c = start; c < k; c += kWideThreads * kSize) {
    store_pack_codes<T>(out.codes + row * k + c, from.load(c), scale.inverse, out.fp8);
  }
}

template <class Source>
void quantize(const Source& source, const RowsOut& out, int64_t m, int64_t k, cudaStream_t stream) {
  int64_t packs = k / Pack<typename Source::Type>::kSize;
  auto narrow = [&]<int Lanes, int Packs>() {
    if (packs > int64_t{Lanes} * Packs) return false;
    auto blocks = static_cast<unsigned>(ceil_div(m, block_size(Lanes) / Lanes));
    start_kernel(rows_kernel<Source, Lanes, Packs>, blocks, block_size(Lanes), 0, stream, source, out, m, k);
    return true;
  };
  bool done = narrow.template operator()<32, 1>() || narrow.template operator()<32, 4>() ||
              narrow.template operator()<96, 3>() || narrow.template operator()<128, 3>() ||
              narrow.template operator()<128, 6>() || narrow.template operator()<256, 5>() ||
              narrow.template operator()<256, 6>() || narrow.template operator()<256, 8>();
  if (!done) start_kernel(wide_rows_kernel<Source>, static_cast<unsigned>(m), kWideThreads, 0, stream, source, out, k);
}

// What a thread of the kernels below takes on: a multiple of neither 16 nor a row crosses it.
constexpr int kSpan = 8, kThreads = 256;

template <class T>
__device__ void store_span(T* out, const float (&values)[kSpan]) {
  constexpr int kSize = Pack<T>::kSize;
#pragma unroll
  for (int p = 0; p < kSpan / kSize; ++p) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kSize; ++i) pack.values[i] = from_float<T>(values[p * kSize + i]);
    store_pack(out + p * kSize, pack);
  }
}

__device__ void eight_values(uint2 codes, bool fp8, float (&values)[kSpan]) {
  uint32_t words[2] = {codes.x, codes.y};
#pragma unroll
  for (int w = 0; w < 2; ++w) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      uint32_t pair = words[w] >> (8 * i);
      float2 both = fp8 ? fp8_pair(pair)
                        : make_float2(static_cast<float>(static_cast<int8_t>(pair & 0xffu)),
                                      static_cast<float>(static_cast<int8_t>(pair >> 8 & 0xffu)));
      values[4 * w + i] = both.x;
      values[4 * w + i + 1] = both.y;
    }
  }
}

// `scale` null: the codes as numbers.
template <class T>
__global__ void bytes_kernel(const uint8_t* codes, const float* scale, T* out, int64_t count, int64_t k, bool fp8) {
  int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kSpan;
  if (at >= count) return;
  float values[kSpan];
  eight_values(*reinterpret_cast<const uint2*>(codes + at), fp8, values);
  if (scale) {
    float factor = scale[at / k];
#pragma unroll
    for (int i = 0; i < kSpan; ++i) values[i] *= factor;
  }
  store_span(out + at, values);
}

template <class T>
__global__ void nvfp4_kernel(const uint8_t* codes, const uint8_t* scale, const float* scale_2, T* out, int64_t count) {
  int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kSpan;
  if (at >= count) return;
  uint32_t word = *reinterpret_cast<const uint32_t*>(codes + at / 2);
  float factor = fp8_pair(scale[at / kNvfp4Block]).x * *scale_2, values[kSpan];
#pragma unroll
  for (int i = 0; i < kSpan; ++i) values[i] = fp4_value(word >> (4 * i) & 15u) * factor;
  store_span(out + at, values);
}

unsigned spans(int64_t count) { return static_cast<unsigned>(ceil_div(count, int64_t{kThreads} * kSpan)); }

template <class T>
void expand(const void* codes, const void* scale, T* out, int64_t m, int64_t k, bool fp8, cudaStream_t stream) {
  if (m * k == 0) return;
  bytes_kernel<<<spans(m * k), kThreads, 0, stream>>>(static_cast<const uint8_t*>(codes),
                                                      static_cast<const float*>(scale), out, m * k, k, fp8);
  check(cudaGetLastError());
}

}  // namespace

void quantize_rows(cudaStream_t stream, DType dtype, const void* x, int64_t m, int64_t k, bool fp8, void* codes,
                   float* scales) {
  if (m == 0 || k == 0) return;
  with_float(dtype, [&]<class T>(T) {
    quantize(Plain<T>{static_cast<const T*>(x), k}, {static_cast<uint8_t*>(codes), scales, fp8}, m, k, stream);
  });
}

Step make_quantize_rows(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  int64_t k = x[-1], m = x.product(0, x.rank() - 1);
  DType dtype = spec.inputs[0].dtype;
  bool fp8 = format_of(spec) == QuantFormat::fp8;
  Step step;
  if (is_nvfp4(format_of(spec))) {
    step.run = [=](const StepArgs& args) { quantize_nvfp4_rows(stream_of(args), dtype, args.in[0], {m, k}, args.out); };
    return step;
  }
  step.run = [=](const StepArgs& args) {
    RowsOut out = rows_out(args.out, m, k, fp8);
    quantize_rows(stream_of(args), dtype, args.in[0], m, k, fp8, out.codes, out.scales);
  };
  return step;
}

bool supports_act_mul_rows(const StepSpec& spec) { return is_act(spec.node.attrs.text("act")); }

Step make_act_mul_rows(const StepSpec& spec) {
  const Shape& shape = spec.inputs[0].shape;
  int64_t k = shape[-1], m = shape.product(0, shape.rank() - 1);
  DType dtype = spec.inputs[0].dtype;
  bool fp8 = format_of(spec) == QuantFormat::fp8;
  Act act = act_of(spec.node.attrs.text("act"));
  std::array<Ints, 2> strides{spec.strides[0], spec.strides[1]};
  for (Ints& each : strides) each.pop_back();
  Layout<2> rows = make_layout<2>(shape.dims().first(static_cast<size_t>(shape.rank() - 1)), strides);
  Step step;
  step.run = [=](const StepArgs& args) {
    if (m == 0 || k == 0) return;
    with_float(dtype, [&]<class T>(T) {
      auto address = reinterpret_cast<uintptr_t>(args.in[0]) | reinterpret_cast<uintptr_t>(args.in[1]);
      bool packed = address % 16 == 0;
      for (const auto& of : rows.strides) {
        for (int axis = 0; axis < rows.rank; ++axis) packed = packed && of[axis] % Pack<T>::kSize == 0;
      }
      Gated<T> source{static_cast<const T*>(args.in[0]), static_cast<const T*>(args.in[1]), rows, act, packed};
      quantize(source, rows_out(args.out, m, k, fp8), m, k, stream_of(args));
    });
  };
  return step;
}

void Decoder::enqueue(cudaStream_t stream, const void* codes, const void* scale, const void* scale_2, DType dtype,
                      void* out) const {
  if (n * k == 0) return;
  with_float(dtype, [&]<class T>(T) {
    auto* to = static_cast<T*>(out);
    if (!is_nvfp4(format)) return expand(codes, scale, to, n, k, code_type(format) != DType::i8, stream);
    nvfp4_kernel<<<spans(n * k), kThreads, 0, stream>>>(static_cast<const uint8_t*>(codes),
                                                        static_cast<const uint8_t*>(scale),
                                                        static_cast<const float*>(scale_2), to, n * k);
    check(cudaGetLastError());
  });
}

Step make_dequantize(const StepSpec& spec) {
  const Shape& shape = spec.output().shape;
  Decoder decoder{format_of(spec), shape[0], shape[1]};
  bool blocks = is_nvfp4(decoder.format);
  Step step;
  step.run = [=](const StepArgs& args) {
    decoder.enqueue(stream_of(args), args.in[0], args.in[1], blocks ? args.in[2] : nullptr, DType::f32, args.out);
  };
  return step;
}

Step make_dequantize_rows(const StepSpec& spec) {
  Decoder decoder{format_of(spec), spec.output().shape[0], spec.output().shape[1]};
  Step step;
  step.run = [=](const StepArgs& args) {
    const auto* codes = static_cast<const std::byte*>(args.in[0]);
    if (is_nvfp4(decoder.format)) {
      Nvfp4Rows rows{decoder.n, decoder.k};
      const auto* scales = reinterpret_cast<const float*>(codes + rows.row_scales_at());
      return TiledNvfp4{codes + rows.codes_at(), codes, scales, rows.m, rows.k}.decode(stream_of(args), DType::f32,
                                                                                       args.out);
    }
    decoder.enqueue(stream_of(args), codes, codes + decoder.n * decoder.k, nullptr, DType::f32, args.out);
  };
  return step;
}

}  // namespace kinora::cuda
