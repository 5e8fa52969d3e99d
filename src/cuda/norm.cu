// LayerNorm with modulation and RMSNorm with weights and residual. A group of threads holds one row in registers:
// one read, one write: of the result, or of its codes where only quantized rows of it are wanted. Rows may be sums that
// are made here, too.
#include "core/quantize.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.h"
#include "cuda/norm.cuh"
#include "graph/views.h"
#include "ops/fuse_quantized.h"
#include "ops/norm.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = kNormThreads;

enum class Stats : uint8_t { none, rms, layer };

// Coded: the result is quantized rows of what it would have been. Summed: x is gate · factor + x, which is a result
// too.
template <Stats S, bool Coded = false, bool Summed = false>
struct Kind {
  static constexpr Stats kStats = S;
  static constexpr bool kLayer = S == Stats::layer, kCoded = Coded, kSummed = Summed;
};

// a: scale or weight, b: shift or bias. Null when absent.
struct NormArgs {
  const void *x, *a, *b, *residual;  // residual: with a sum, its factor
  const void* gate;
  void *out, *sum;  // of x's type
  uint8_t* codes;   // quantized rows, in place of out
  Layout<5> rows;   // where each row begins, in elements: of x, a, b, residual, gate
  int64_t width;
  float eps, offset;
  bool relu, fp8;  // fp8: of codes
};

// Rounded after each operation, so that every kernel here gives the same.
template <class K>
__device__ float result_of(const NormArgs& p, float normed, float a, float b, float residual) {
  float y = normed;
  if (p.a) y = __fmul_rn(y, a + p.offset);
  if (p.b) y = __fadd_rn(y, b);
  if constexpr (K::kStats == Stats::rms && !K::kCoded) {
    if (p.relu) y = y > 0 ? y : (y == y ? 0.0f : y);
  }
  return !K::kSummed && p.residual ? __fadd_rn(y, residual) : y;
}

__device__ RowsOut rows_out_of(const NormArgs& p) {
  return {p.codes, reinterpret_cast<float*>(p.codes + p.rows.count * p.width), p.fp8};
}

// gate · factor + x as x's type holds it.
template <class T>
__device__ float summed(float gate, float factor, float x) {
  return to_float(from_float<T>(fmaf(gate, factor, x)));
}

// Takes a thread's part of a row that begins at at[0], or of the sum, which it writes. Loads come before what is
// stored: several of them are then on their way at once.
template <class T, int Group, int Groups, int Lanes, class K>
__device__ void take_row(const NormArgs& p, const int64_t (&at)[5], int64_t row, int width,
                         float (&values)[Groups][Group]) {
  constexpr int kAtOnce = Groups <= 3 ? Groups : (Groups % 3 == 0 ? 3 : 4);
  int lane = static_cast<int>(threadIdx.x) % Lanes;
  const auto* x = static_cast<const T*>(p.x) + at[0];
#pragma unroll
  for (int first = 0; first < Groups; first += kAtOnce) {
    Held<T, Group> own[kAtOnce] = {}, gate[kAtOnce] = {}, factor[kAtOnce] = {};
#pragma unroll
    for (int g = 0; g < kAtOnce; ++g) {
      int column = ((first + g) * Lanes + lane) * Group;
      if (column >= width) continue;
      own[g] = hold<T, Group>(x + column);
      if constexpr (K::kSummed) {
        factor[g] = hold<T, Group>(static_cast<const T*>(p.residual) + at[3] + column);
        gate[g] = hold<T, Group>(static_cast<const T*>(p.gate) + at[4] + column);
      }
    }
#pragma unroll
    for (int g = 0; g < kAtOnce; ++g) {
      float(&taken)[Group] = values[first + g];
      numbers_of<T, Group>(own[g], taken);
      if constexpr (K::kSummed) {
        float weight[Group], weighed[Group];
        numbers_of<T, Group>(gate[g], weight);
        numbers_of<T, Group>(factor[g], weighed);
#pragma unroll
        for (int i = 0; i < Group; ++i) taken[i] = summed<T>(weight[i], weighed[i], taken[i]);
        int column = ((first + g) * Lanes + lane) * Group;
        if (column < width) write_group<T, Group>(static_cast<T*>(p.sum) + row * p.width + column, taken);
      }
    }
  }
}

// Rows of at most Lanes · Groups groups of Group elements, kept in registers between the passes. From T to U.
template <class T, class U, int Group, int Groups, int Lanes, class K>
__global__ void __launch_bounds__(block_size(Lanes)) norm_kernel(const __grid_constant__ NormArgs p) {
  constexpr int kBlock = block_size(Lanes);
  __shared__ float shared[2][kBlock / 32];
  begin_kernel();
  int lane = static_cast<int>(threadIdx.x) % Lanes, width = static_cast<int>(p.width);
  int64_t row = int64_t{blockIdx.x} * (kBlock / Lanes) + static_cast<int>(threadIdx.x) / Lanes;
  bool active = row < p.rows.count;
  int64_t at[5] = {};
  if (active) p.rows.offsets(static_cast<uint32_t>(row), at);
  float values[Groups][Group];
  take_row<T, Group, Groups, Lanes, K>(p, at, row, active ? width : 0, values);
  float total = 0;
  if constexpr (K::kLayer) {
#pragma unroll
    for (int g = 0; g < Groups; ++g) {
#pragma unroll
      for (int i = 0; i < Group; ++i) total += values[g][i];
    }
  }
  float mean = K::kLayer ? lanes_sum<Lanes>(total, shared[0]) / static_cast<float>(p.width) : 0, scale = 1;
  if constexpr (K::kStats != Stats::none) {
    total = 0;
#pragma unroll
    for (int g = 0; g < Groups; ++g) {
      if ((g * Lanes + lane) * Group >= width) continue;
#pragma unroll
      for (int i = 0; i < Group; ++i) {
        if constexpr (K::kLayer) values[g][i] -= mean;
        total += values[g][i] * values[g][i];
      }
    }
    scale = rsqrtf(lanes_sum<Lanes>(total, shared[1]) / static_cast<float>(p.width) + p.eps);
  }
  if (!K::kCoded && !active) return;
  uint32_t peak = 0;
#pragma unroll
  for (int g = 0; g < Groups; ++g) {
    int column = (g * Lanes + lane) * Group;
    if (!active || column >= width) continue;
    float a[Group] = {}, b[Group] = {}, r[Group] = {};
    if (p.a) read_group<T, Group>(static_cast<const T*>(p.a) + at[1] + column, a);
    if (p.b) read_group<T, Group>(static_cast<const T*>(p.b) + at[2] + column, b);
    if (!K::kSummed && p.residual) read_group<T, Group>(static_cast<const T*>(p.residual) + at[3] + column, r);
    float y[Group];
#pragma unroll
    for (int i = 0; i < Group; ++i) {
      y[i] = result_of<K>(p, values[g][i] * scale, a[i], b[i], r[i]);
      if constexpr (K::kCoded) {
        values[g][i] = to_float(from_float<U>(y[i]));
        peak = max(peak, magnitude_bits(values[g][i]));
      }
    }
    if constexpr (!K::kCoded) write_group<U, Group>(static_cast<U*>(p.out) + row * p.width + column, y);
  }
  if constexpr (K::kCoded) {
    __shared__ uint32_t peaks[kBlock / 32];
    RowsOut out = rows_out_of(p);
    RowScaleOnDevice row_scale = row_scale_of(lanes_max<Lanes>(peak, peaks), out.fp8);
    if (!active) return;
    if (lane == 0) out.scales[row] = row_scale.scale;
#pragma unroll
    for (int g = 0; g < Groups; ++g) {
      int column = (g * Lanes + lane) * Group;
      if (column < width) store_codes(out.codes + row * p.width + column, values[g], row_scale.inverse, out.fp8);
    }
  }
}

// Any width: the row is read three times, or four for codes.
template <class T, class U, class K>
__global__ void wide_norm_kernel(const __grid_constant__ NormArgs p) {
  __shared__ float shared[2][kThreads / 32];
  begin_kernel();
  int64_t row = blockIdx.x, at[5];
  p.rows.offsets(static_cast<uint32_t>(row), at);
  const auto* x = static_cast<const T*>(p.x) + at[0];
  if constexpr (K::kSummed) {  // a thread reads back only what it wrote
    T* sum = static_cast<T*>(p.sum) + row * p.width;
    const auto *gate = static_cast<const T*>(p.gate) + at[4], *factor = static_cast<const T*>(p.residual) + at[3];
    for (int64_t c = threadIdx.x; c < p.width; c += kThreads) {
      sum[c] = from_float<T>(summed<T>(to_float(gate[c]), to_float(factor[c]), to_float(x[c])));
    }
    x = sum;
  }
  float total = 0;
  for (int64_t c = threadIdx.x; K::kLayer && c < p.width; c += kThreads) total += to_float(x[c]);
  float mean = K::kLayer ? lanes_sum<kThreads>(total, shared[0]) / static_cast<float>(p.width) : 0, scale = 1;
  if constexpr (K::kStats != Stats::none) {
    total = 0;
    for (int64_t c = threadIdx.x; c < p.width; c += kThreads) {
      float centred = to_float(x[c]) - mean;
      total += centred * centred;
    }
    scale = rsqrtf(lanes_sum<kThreads>(total, shared[1]) / static_cast<float>(p.width) + p.eps);
  }
  auto result = [&](int64_t c) {
    auto read = [&](const void* from, int64_t offset) {
      return from ? to_float(static_cast<const T*>(from)[offset + c]) : 0.0f;
    };
    float y = (to_float(x[c]) - mean) * scale;
    float residual = K::kSummed ? 0.0f : read(p.residual, at[3]);
    return from_float<U>(result_of<K>(p, y, read(p.a, at[1]), read(p.b, at[2]), residual));
  };
  if constexpr (K::kCoded) {
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

template <class T, class U, int Group, class K>
bool launch_narrow(const NormArgs& p, cudaStream_t stream) {
  auto run = [&]<int Groups, int Lanes>() {
    if (p.width > int64_t{Groups} * Lanes * Group) return false;
    auto blocks = static_cast<unsigned>(ceil_div(p.rows.count, block_size(Lanes) / Lanes));
    start_kernel(norm_kernel<T, U, Group, Groups, Lanes, K>, blocks, block_size(Lanes), 0, stream, p);
    return true;
  };
  return first_that_fits(run);
}

template <class T, class U, class K>
void launch(const NormArgs& p, cudaStream_t stream) {
  constexpr int kGroup = Pack<T>::kSize;
  auto address = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.a) |
                 reinterpret_cast<uintptr_t>(p.b) | reinterpret_cast<uintptr_t>(p.residual) |
                 reinterpret_cast<uintptr_t>(p.gate) | reinterpret_cast<uintptr_t>(p.out) |
                 reinterpret_cast<uintptr_t>(p.sum);
  bool packs = address % 16 == 0 && p.width % kGroup == 0;
  for (int t = 0; t < 5; ++t) {
    for (int axis = 0; axis < p.rows.rank; ++axis) packs = packs && p.rows.strides[t][axis] % kGroup == 0;
  }
  if (packs && launch_narrow<T, U, kGroup, K>(p, stream)) return;
  if constexpr (!K::kCoded) {
    if (!packs && launch_narrow<T, U, 1, K>(p, stream)) return;
  }
  start_kernel(wide_norm_kernel<T, U, K>, static_cast<unsigned>(p.rows.count), kThreads, 0, stream, p);
}

// Of one type, or from float32 to 16 bits.
template <class K>
void launch(const NormArgs& p, DType from, DType to, cudaStream_t stream) {
  if (from == to) {
    with_float(to, [&]<class T>(T) { launch<T, T, K>(p, stream); });
  } else if constexpr (K::kStats == Stats::rms) {
    with_float(to, [&]<class U>(U) { launch<float, U, K>(p, stream); });
  }
}

// Inputs by their place in the node: -1 when absent.
struct Places {
  int a, b, residual, gate = -1, x = 0;
};

// Of the norm's results, before the rows of them are quantized.
DType norm_type(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  return attrs.has("to") ? static_cast<DType>(attrs.integer("to")) : spec.inputs[0].dtype;
}

template <class K>
Step norm_step(const StepSpec& spec, Places places, float offset) {
  Shape shape = spec.inputs[static_cast<size_t>(places.x)].shape;
  int64_t width = shape[-1];
  Ints extents(shape.dims().begin(), shape.dims().end() - 1);
  std::array<Ints, 5> strides;
  int inputs[] = {places.x, places.a, places.b, places.residual, places.gate};
  for (size_t t = 0; t < 5; ++t) {
    if (inputs[t] < 0) {
      strides[t] = Ints(extents.size(), 0);
      continue;
    }
    auto at = static_cast<size_t>(inputs[t]);
    strides[t] = broadcast_strides(shape, spec.inputs[at].shape, spec.strides[at]);
    strides[t].pop_back();
  }
  NormArgs p{};
  p.rows = make_layout<5>(extents, strides);
  p.width = width;
  p.eps = static_cast<float>(spec.node.attrs.real("eps"));
  p.offset = offset;
  p.relu = spec.node.op == &kRmsNorm && spec.node.attrs.has("act");
  if (K::kCoded) p.fp8 = quant_format_from_name(spec.node.attrs.text("format")) == QuantFormat::fp8;
  DType from = spec.inputs[0].dtype, to = norm_type(spec);
  Step step;
  step.in_place = !K::kCoded && !K::kSummed && from == to && spec.strides[0] == contiguous_strides(shape);
  step.run = [=](const StepArgs& args) {
    if (p.rows.count == 0 || p.width == 0) return;
    auto input = [&](int place) { return place < 0 ? nullptr : args.in[static_cast<size_t>(place)]; };
    NormArgs full = p;
    full.x = input(places.x);
    full.a = input(places.a);
    full.b = input(places.b);
    full.residual = input(places.residual);
    full.gate = input(places.gate);
    auto* made = static_cast<uint8_t*>(args.out) + (K::kSummed ? bytes_before_made({shape, from}) : 0);
    if (K::kSummed) full.sum = args.out;
    full.out = K::kCoded ? nullptr : made;
    full.codes = K::kCoded ? made : nullptr;
    launch<K>(full, from, to, stream_of(args));
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
  const Attrs& attrs = spec.node.attrs;
  if (attrs.has("act") && (spec.node.op != &kRmsNorm || attrs.text("act") != "relu")) return false;
  return spec.inputs[0].shape.rank() > 0 && like_x(spec) && (from == to || from == DType::f32);
}

Step make_layer_norm(const StepSpec& spec) {
  return norm_step<Kind<Stats::layer>>(spec, {place(spec, 1), place(spec, 2), -1}, 1);
}

Step make_rms_norm(const StepSpec& spec) {
  return norm_step<Kind<Stats::rms>>(spec, {place(spec, 1), place(spec, 2), -1},
                                     static_cast<float>(spec.node.attrs.real("offset")));
}

Step make_layer_norm_rows(const StepSpec& spec) {
  return norm_step<Kind<Stats::layer, true>>(spec, {place(spec, 1), place(spec, 2), -1}, 1);
}

Step make_rms_norm_rows(const StepSpec& spec) {
  return norm_step<Kind<Stats::rms, true>>(spec, {place(spec, 1), place(spec, 2), -1},
                                           static_cast<float>(spec.node.attrs.real("offset")));
}

bool supports_mul_add_rows(const StepSpec& spec) {
  for (const TensorSpec& input : spec.inputs) {
    if (input.shape.rank() == 0) return false;
  }
  return like_x(spec);
}

Step make_mul_add_rows(const StepSpec& spec) {
  Places places{place(spec, 3), place(spec, 4), 1, 0, 2};
  if (!spec.node.attrs.integer("norm")) return norm_step<Kind<Stats::none, true, true>>(spec, places, 1);
  return norm_step<Kind<Stats::layer, true, true>>(spec, places, 1);
}

Step make_mul_add_norm(const StepSpec& spec) {
  return norm_step<Kind<Stats::layer, false, true>>(spec, {place(spec, 3), place(spec, 4), 1, 0, 2}, 1);
}

Step make_rms_norm_add(const StepSpec& spec) {
  return norm_step<Kind<Stats::rms>>(spec, {place(spec, 2), place(spec, 3), 1},
                                     static_cast<float>(spec.node.attrs.real("offset")));
}

}  // namespace kinora::cuda
