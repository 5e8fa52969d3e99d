// LayerNorm with modulation and RMSNorm with weights and residual. A group of threads holds one row in registers:
// one read, one write: of the result, or of its codes where only quantized rows of it are wanted.
#include "core/quantize.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/quantize.cuh"
#include "graph/views.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 128;

// Where each row begins, in elements; `strides[k]` of the rows' index space for x, scale or residual, and shift.
struct NormArgs {
  const void *x, *a, *b, *residual;  // a: scale or weight, b: shift or bias; null when absent
  void* out;
  Layout<4> rows;  // x, a, b, residual
  int64_t width;
  float eps, offset;
  bool fp8;  // of codes
};

// Sum over `Lanes` neighbouring threads; more than a warp goes through shared memory.
template <int Lanes>
__device__ float lanes_sum(float x, float* shared) {
  constexpr int kWidth = Lanes < 32 ? Lanes : 32;
  for (int offset = kWidth / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  if constexpr (Lanes > 32) {
    constexpr int kWarps = Lanes / 32;
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    int first = threadIdx.x / Lanes * kWarps;
    for (int i = 0; i < kWarps; ++i) x += shared[first + i];
    __syncthreads();
  }
  return x;
}

// Rounded after each operation, so that every kernel here gives the same.
__device__ float result_of(const NormArgs& p, float normed, float a, float b, float residual) {
  float y = normed;
  if (p.a) y = __fmul_rn(y, a + p.offset);
  if (p.b) y = __fadd_rn(y, b);
  return p.residual ? __fadd_rn(y, residual) : y;
}

__device__ RowsOut rows_out_of(const NormArgs& p) {
  auto* codes = static_cast<uint8_t*>(p.out);
  return {codes, reinterpret_cast<float*>(codes + p.rows.count * p.width), p.fp8};
}

template <class T, int Group>
__device__ void read_group(const T* address, float (&out)[Group]) {
  if constexpr (Group == 1) {
    out[0] = to_float(*address);
  } else {
    Pack<T> pack = load_pack(address);
    for (int i = 0; i < Group; ++i) out[i] = to_float(pack.values[i]);
  }
}

template <class T, int Group>
__device__ void write_group(T* address, const float (&y)[Group]) {
  struct alignas(sizeof(T) * Group) Few {
    T values[Group];
  } few;
  for (int i = 0; i < Group; ++i) few.values[i] = from_float<T>(y[i]);
  *reinterpret_cast<Few*>(address) = few;
}

// Rows of at most Lanes · Groups groups of Group elements, kept in registers between the passes. From T to U. With
// `Coded` the result is quantized rows of what it would have been.
template <class T, class U, int Group, int Groups, int Lanes, bool Layer, bool Coded>
__global__ void norm_kernel(NormArgs p) {
  __shared__ float shared[kThreads / 32];
  int lane = threadIdx.x % Lanes;
  int64_t row = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / Lanes;
  bool active = row < p.rows.count;
  int64_t at[4] = {};
  if (active) p.rows.offsets(static_cast<uint32_t>(row), at);
  const auto* x = static_cast<const T*>(p.x) + at[0];
  float values[Groups][Group];
  float total = 0;
  for (int g = 0; g < Groups; ++g) {
    int64_t column = (int64_t{g} * Lanes + lane) * Group;
    if (active && column < p.width) {
      read_group<T, Group>(x + column, values[g]);
    } else {
      for (int i = 0; i < Group; ++i) values[g][i] = 0;
    }
    if (Layer) {
      for (int i = 0; i < Group; ++i) total += values[g][i];
    }
  }
  float mean = Layer ? lanes_sum<Lanes>(total, shared) / static_cast<float>(p.width) : 0;
  total = 0;
  for (int g = 0; g < Groups; ++g) {
    int64_t column = (int64_t{g} * Lanes + lane) * Group;
    if (column >= p.width) continue;
    for (int i = 0; i < Group; ++i) {
      float centred = values[g][i] - mean;
      total += centred * centred;
    }
  }
  float scale = rsqrtf(lanes_sum<Lanes>(total, shared) / static_cast<float>(p.width) + p.eps);
  if (!Coded && !active) return;
  uint32_t peak = 0;
  for (int g = 0; g < Groups; ++g) {
    int64_t column = (int64_t{g} * Lanes + lane) * Group;
    if (!active || column >= p.width) continue;
    float a[Group] = {}, b[Group] = {}, r[Group] = {};
    if (p.a) read_group<T, Group>(static_cast<const T*>(p.a) + at[1] + column, a);
    if (p.b) read_group<T, Group>(static_cast<const T*>(p.b) + at[2] + column, b);
    if (p.residual) read_group<T, Group>(static_cast<const T*>(p.residual) + at[3] + column, r);
    float y[Group];
    for (int i = 0; i < Group; ++i) {
      y[i] = result_of(p, (values[g][i] - mean) * scale, a[i], b[i], r[i]);
      if constexpr (Coded) {
        values[g][i] = to_float(from_float<U>(y[i]));
        peak = max(peak, magnitude_bits(values[g][i]));
      }
    }
    if constexpr (!Coded) write_group<U, Group>(static_cast<U*>(p.out) + row * p.width + column, y);
  }
  if constexpr (Coded) {
    __shared__ uint32_t peaks[kThreads / 32];
    RowsOut out = rows_out_of(p);
    RowScaleOnDevice row_scale = row_scale_of(lanes_max<Lanes>(peak, peaks), out.fp8);
    if (!active) return;
    if (lane == 0) out.scales[row] = row_scale.scale;
    for (int g = 0; g < Groups; ++g) {
      int64_t column = (int64_t{g} * Lanes + lane) * Group;
      if (column < p.width) store_codes(out.codes + row * p.width + column, values[g], row_scale.inverse, out.fp8);
    }
  }
}

// Any width: the row is read three times, or four for codes.
template <class T, class U, bool Layer, bool Coded>
__global__ void wide_norm_kernel(NormArgs p) {
  __shared__ float shared[kThreads / 32];
  int64_t row = blockIdx.x, at[4];
  p.rows.offsets(static_cast<uint32_t>(row), at);
  const auto* x = static_cast<const T*>(p.x) + at[0];
  float total = 0;
  for (int64_t c = threadIdx.x; Layer && c < p.width; c += kThreads) total += to_float(x[c]);
  float mean = Layer ? lanes_sum<kThreads>(total, shared) / static_cast<float>(p.width) : 0;
  total = 0;
  for (int64_t c = threadIdx.x; c < p.width; c += kThreads) {
    float centred = to_float(x[c]) - mean;
    total += centred * centred;
  }
  float scale = rsqrtf(lanes_sum<kThreads>(total, shared) / static_cast<float>(p.width) + p.eps);
  auto result = [&](int64_t c) {
    auto read = [&](const void* from, int64_t offset) {
      return from ? to_float(static_cast<const T*>(from)[offset + c]) : 0.0f;
    };
    float y = (to_float(x[c]) - mean) * scale;
    return from_float<U>(result_of(p, y, read(p.a, at[1]), read(p.b, at[2]), read(p.residual, at[3])));
  };
  if constexpr (Coded) {
    __shared__ uint32_t peaks[kThreads / 32];
    uint32_t peak = 0;
    for (int64_t c = threadIdx.x; c < p.width; c += kThreads) peak = max(peak, magnitude_bits(to_float(result(c))));
    RowsOut out = rows_out_of(p);
    RowScaleOnDevice row_scale = row_scale_of(lanes_max<kThreads>(peak, peaks), out.fp8);
    if (threadIdx.x == 0) out.scales[row] = row_scale.scale;
    for (int64_t c = threadIdx.x; c < p.width; c += kThreads) {
      out.codes[row * p.width + c] = code_of(to_float(result(c)), row_scale.inverse, out.fp8);
    }
  } else {
    for (int64_t c = threadIdx.x; c < p.width; c += kThreads) static_cast<U*>(p.out)[row * p.width + c] = result(c);
  }
}

template <class T, class U, int Group, bool Layer, bool Coded>
bool launch_narrow(const NormArgs& p, cudaStream_t stream) {
  auto run = [&]<int Groups, int Lanes>() {
    if (p.width > int64_t{Groups} * Lanes * Group) return false;
    auto blocks = static_cast<unsigned>(ceil_div(p.rows.count * Lanes, kThreads));
    norm_kernel<T, U, Group, Groups, Lanes, Layer, Coded><<<blocks, kThreads, 0, stream>>>(p);
    return true;
  };
  return run.template operator()<1, 8>() || run.template operator()<1, 16>() || run.template operator()<2, 16>() ||
         run.template operator()<2, 32>() || run.template operator()<2, 64>() || run.template operator()<2, 128>() ||
         run.template operator()<3, 128>() || run.template operator()<6, 128>() || run.template operator()<8, 128>();
}

template <class T, class U, bool Layer, bool Coded>
void launch(const NormArgs& p, cudaStream_t stream) {
  constexpr int kGroup = Pack<T>::kSize;
  auto address = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.a) |
                 reinterpret_cast<uintptr_t>(p.b) | reinterpret_cast<uintptr_t>(p.residual) |
                 reinterpret_cast<uintptr_t>(p.out);
  bool packs = address % 16 == 0 && p.width % kGroup == 0;
  for (int t = 0; t < 4; ++t) {
    for (int axis = 0; axis < p.rows.rank; ++axis) packs = packs && p.rows.strides[t][axis] % kGroup == 0;
  }
  if (packs && launch_narrow<T, U, kGroup, Layer, Coded>(p, stream)) return;
  if (!packs && launch_narrow<T, U, 1, Layer, Coded>(p, stream)) return;
  wide_norm_kernel<T, U, Layer, Coded><<<static_cast<unsigned>(p.rows.count), kThreads, 0, stream>>>(p);
}

// Of one type, or from float32 to 16 bits.
template <bool Layer, bool Coded>
void launch(const NormArgs& p, DType from, DType to, cudaStream_t stream) {
  if (from == to) {
    with_float(to, [&]<class T>(T) { launch<T, T, Layer, Coded>(p, stream); });
  } else if constexpr (!Layer) {
    with_float(to, [&]<class U>(U) { launch<float, U, Layer, Coded>(p, stream); });
  }
  check(cudaGetLastError());
}

// Inputs by their place in the node: -1 when absent.
struct Places {
  int a, b, residual;
};

// Of the norm's results, before the rows of them are quantized.
DType norm_type(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  return attrs.has("to") ? static_cast<DType>(attrs.integer("to")) : spec.inputs[0].dtype;
}

template <bool Layer, bool Coded = false>
Step norm_step(const StepSpec& spec, Places places, float offset) {
  const Shape& shape = spec.inputs[0].shape;
  int64_t width = shape[-1];
  Ints extents(shape.dims().begin(), shape.dims().end() - 1);
  std::array<Ints, 4> strides;
  int inputs[] = {0, places.a, places.b, places.residual};
  for (size_t t = 0; t < 4; ++t) {
    if (inputs[t] < 0) {
      strides[t] = Ints(extents.size(), 0);
      continue;
    }
    auto at = static_cast<size_t>(inputs[t]);
    strides[t] = broadcast_strides(shape, spec.inputs[at].shape, spec.strides[at]);
    strides[t].pop_back();
  }
  NormArgs p{};
  p.rows = make_layout<4>(extents, strides);
  p.width = width;
  p.eps = static_cast<float>(spec.node.attrs.real("eps"));
  p.offset = offset;
  if (Coded) p.fp8 = quant_format_from_name(spec.node.attrs.text("format")) == QuantFormat::fp8;
  DType from = spec.inputs[0].dtype, to = norm_type(spec);
  Step step;
  step.in_place = !Coded && from == to && spec.strides[0] == contiguous_strides(shape);
  step.run = [=](const StepArgs& args) {
    if (p.rows.count == 0 || p.width == 0) return;
    auto input = [&](int place) { return place < 0 ? nullptr : args.in[static_cast<size_t>(place)]; };
    NormArgs full = p;
    full.x = args.in[0];
    full.a = input(places.a);
    full.b = input(places.b);
    full.residual = input(places.residual);
    full.out = args.out;
    launch<Layer, Coded>(full, from, to, stream_of(args));
  };
  return step;
}

int place(const StepSpec& spec, size_t index) { return spec.inputs.size() > index ? static_cast<int>(index) : -1; }

// Weights are read in x's type; a scale that broadcasts along the last axis is not.
bool like_x(const StepSpec& spec) {
  for (const TensorSpec& input : spec.inputs) {
    if (input.dtype != spec.inputs[0].dtype || input.shape[-1] != spec.inputs[0].shape[-1]) return false;
  }
  return true;
}

}  // namespace

bool supports_norm(const StepSpec& spec) {
  DType from = spec.inputs[0].dtype, to = norm_type(spec);
  return spec.inputs[0].shape.rank() > 0 && like_x(spec) && (from == to || from == DType::f32);
}

Step make_layer_norm(const StepSpec& spec) { return norm_step<true>(spec, {place(spec, 1), place(spec, 2), -1}, 1); }

Step make_rms_norm(const StepSpec& spec) {
  return norm_step<false>(spec, {place(spec, 1), place(spec, 2), -1},
                          static_cast<float>(spec.node.attrs.real("offset")));
}

Step make_layer_norm_rows(const StepSpec& spec) {
  return norm_step<true, true>(spec, {place(spec, 1), place(spec, 2), -1}, 1);
}

Step make_rms_norm_rows(const StepSpec& spec) {
  return norm_step<false, true>(spec, {place(spec, 1), place(spec, 2), -1},
                                static_cast<float>(spec.node.attrs.real("offset")));
}

Step make_rms_norm_add(const StepSpec& spec) {
  return norm_step<false>(spec, {place(spec, 2), place(spec, 3), 1},
                          static_cast<float>(spec.node.attrs.real("offset")));
}

}  // namespace kinora::cuda
