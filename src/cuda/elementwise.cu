// Elementwise ops with broadcasting, one pack of 16 bytes a thread where shapes allow.
#include "cuda/activation.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.h"
#include "graph/views.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 256;

struct Affine {
  float scale, shift;
  __device__ float operator()(float x) const { return x * scale + shift; }
};
struct Clamp {
  float low, high;
  __device__ float operator()(float x) const { return x < low ? low : x > high ? high : x; }
};
struct Exp {
  __device__ float operator()(float x) const { return expf(x); }
};
struct Log {
  __device__ float operator()(float x) const { return logf(x); }
};
struct Sqrt {
  __device__ float operator()(float x) const { return sqrtf(x); }
};
struct Rsqrt {
  __device__ float operator()(float x) const { return 1.0f / sqrtf(x); }
};
struct Sin {
  __device__ float operator()(float x) const { return sinf(x); }
};
struct Cos {
  __device__ float operator()(float x) const { return cosf(x); }
};
struct Tanh {
  __device__ float operator()(float x) const { return tanhf(x); }
};
struct Sigmoid {
  __device__ float operator()(float x) const { return 1.0f / (1.0f + expf(-x)); }
};
struct Relu {
  __device__ float operator()(float x) const { return x > 0 ? x : x == x ? 0.0f : x; }
};
struct Positive {
  __device__ float operator()(float x) const { return x > 0 ? 1.0f : 0.0f; }
};
struct Silu {
  __device__ float operator()(float x) const { return x / (1.0f + expf(-x)); }
};
struct GeluTanh {
  __device__ float operator()(float x) const {
    float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
  }
};
struct Erf {
  __device__ float operator()(float x) const { return erff(x); }
};
struct Gelu {
  __device__ float operator()(float x) const { return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f)); }
};
struct QuickGelu {
  __device__ float operator()(float x) const { return x / (1.0f + expf(-1.702f * x)); }
};
struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Sub {
  __device__ float operator()(float a, float b) const { return a - b; }
};
struct Mul {
  __device__ float operator()(float a, float b) const { return a * b; }
};
struct Div {
  __device__ float operator()(float a, float b) const { return a / b; }
};
struct MulAdd {
  __device__ float operator()(float a, float b, float c) const { return fmaf(a, b, c); }
};
template <class T, Act A>
struct ActMul {
  __device__ float operator()(float a, float b) const { return activate_gate<T>(a, A) * b; }
};

template <int N>
struct Pointers {
  const void* in[N];
};

template <class T, int N, int Group>
__device__ void load_group(const T* base, int64_t offset, int64_t stride, float (&out)[Group]) {
  if (stride == 0) {
    float value = to_float(base[offset]);
#pragma unroll
    for (int i = 0; i < Group; ++i) out[i] = value;
  } else if constexpr (Group * sizeof(T) == 16) {
    Pack<T> pack = load_pack(base + offset);
#pragma unroll
    for (int i = 0; i < Group; ++i) out[i] = to_float(pack.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < Group; ++i) out[i] = to_float(base[offset + i]);
  }
}

// One result group a thread. The layout counts groups along its innermost axis.
template <class T, int N, int Group, class F>
__global__ void map_kernel(Pointers<N> from, T* out, const __grid_constant__ Layout<N> layout, F f) {
  begin_kernel();
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= layout.count) return;
  int64_t offsets[N];
  layout.offsets(static_cast<uint32_t>(index), offsets);
  float values[N][Group];
#pragma unroll
  for (int t = 0; t < N; ++t) {
    int64_t inner = layout.rank ? layout.strides[t][layout.rank - 1] : 0;
    load_group<T, N, Group>(static_cast<const T*>(from.in[t]), offsets[t], inner, values[t]);
  }
  T results[Group];
#pragma unroll
  for (int i = 0; i < Group; ++i) {
    if constexpr (N == 1) results[i] = from_float<T>(f(values[0][i]));
    if constexpr (N == 2) results[i] = from_float<T>(f(values[0][i], values[1][i]));
    if constexpr (N == 3) results[i] = from_float<T>(f(values[0][i], values[1][i], values[2][i]));
  }
  if constexpr (Group * sizeof(T) == 16) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < Group; ++i) pack.values[i] = results[i];
    store_pack(out + index * Group, pack);
  } else {
#pragma unroll
    for (int i = 0; i < Group; ++i) out[index * Group + i] = results[i];
  }
}

// Turns an index space of elements into one of groups.
template <int N>
Layout<N> grouped(Layout<N> layout, int group) {
  if (group == 1) return layout;
  int last = layout.rank - 1;
  layout.count /= group;
  layout.extents[last] /= static_cast<uint32_t>(group);
#pragma unroll
  for (int t = 0; t < N; ++t) layout.strides[t][last] *= group;
  return layout;
}

template <int N>
bool aligned(const StepArgs& args) {
  bool ok = reinterpret_cast<uintptr_t>(args.out) % 16 == 0;
#pragma unroll
  for (int t = 0; t < N; ++t) ok = ok && reinterpret_cast<uintptr_t>(args.in[size_t(t)]) % 16 == 0;
  return ok;
}

template <class T, int N, int Group, class F>
void launch(const StepArgs& args, const Layout<N>& layout, F f) {
  Pointers<N> from;
#pragma unroll
  for (int t = 0; t < N; ++t) from.in[t] = args.in[size_t(t)];
  Layout<N> groups = grouped(layout, Group);
  start_kernel(map_kernel<T, N, Group, F>, static_cast<unsigned>(ceil_div(groups.count, kThreads)), kThreads, 0,
               stream_of(args), from, static_cast<T*>(args.out), groups, f);
}

template <int N, class F>
Step map_step(const StepSpec& spec, F f) {
  const Shape& shape = spec.output().shape;
  std::array<Ints, N> strides;
  for (size_t t = 0; t < N; ++t) strides[t] = broadcast_strides(shape, spec.inputs[t].shape, spec.strides[t]);
  Layout<N> layout = make_layout<N>(shape.dims(), strides);
  DType dtype = spec.output().dtype;
  Step step;
  step.in_place = N == 1 || (spec.inputs[0].shape == shape && spec.strides[0] == contiguous_strides(shape));
  if (N == 1) step.in_place = spec.strides[0] == contiguous_strides(shape);
  if (layout.count == 0) {
    step.run = [](const StepArgs&) {};
    return step;
  }
  step.run = [=](const StepArgs& args) {
    with_float(dtype, [&]<class T>(T) {
      constexpr int kGroup = Pack<T>::kSize;
      if (aligned<N>(args) && group_size(layout, kGroup) == kGroup) {
        launch<T, N, kGroup>(args, layout, f);
      } else {
        launch<T, N, 1>(args, layout, f);
      }
    });
  };
  return step;
}

template <class From, class To>
__global__ void cast_kernel(const From* in, To* out, int64_t count) {
  int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 8;
  if (at + 8 <= count) {
    From values[8];
    To results[8];
    constexpr int kFromPacks = static_cast<int>(sizeof(From) / 2), kToPacks = static_cast<int>(sizeof(To) / 2);
#pragma unroll
    for (int i = 0; i < kFromPacks; ++i) {
      reinterpret_cast<Pack<From>*>(values)[i] = load_pack(in + at + i * Pack<From>::kSize);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) results[i] = from_float<To>(to_float(values[i]));
#pragma unroll
    for (int i = 0; i < kToPacks; ++i) {
      store_pack(out + at + i * Pack<To>::kSize, reinterpret_cast<Pack<To>*>(results)[i]);
    }
    return;
  }
  for (int64_t i = at; i < count; ++i) out[i] = from_float<To>(to_float(in[i]));
}

// To bytes, as the host's cast does: towards zero, of values that a byte holds.
template <class From>
__global__ void bytes_kernel(const From* in, uint8_t* out, int64_t count) {
  int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * 4;
  for (int64_t i = at; i < min(at + 4, count); ++i) out[i] = static_cast<uint8_t>(to_float(in[i]));
}

// x [.., 2C] -> first half · silu(second half).
template <class T>
__global__ void glu_kernel(const T* in, T* out, int64_t count, int64_t channels) {
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= count) return;
  int64_t row = index / channels, at = row * channels + index;
  out[index] = from_float<T>(to_float(in[at]) * Silu{}(to_float(in[at + channels])));
}

}  // namespace

Step make_unary(const StepSpec& spec) {
  std::string_view name = spec.node.op->name;
  if (name == "exp") return map_step<1>(spec, Exp{});
  if (name == "log") return map_step<1>(spec, Log{});
  if (name == "sqrt") return map_step<1>(spec, Sqrt{});
  if (name == "rsqrt") return map_step<1>(spec, Rsqrt{});
  if (name == "sin") return map_step<1>(spec, Sin{});
  if (name == "cos") return map_step<1>(spec, Cos{});
  if (name == "tanh") return map_step<1>(spec, Tanh{});
  if (name == "sigmoid") return map_step<1>(spec, Sigmoid{});
  if (name == "relu") return map_step<1>(spec, Relu{});
  if (name == "step") return map_step<1>(spec, Positive{});
  if (name == "silu") return map_step<1>(spec, Silu{});
  if (name == "gelu_tanh") return map_step<1>(spec, GeluTanh{});
  if (name == "erf") return map_step<1>(spec, Erf{});
  if (name == "gelu") return map_step<1>(spec, Gelu{});
  if (name == "quick_gelu") return map_step<1>(spec, QuickGelu{});
  fail(ErrorKind::internal, "no unary CUDA kernel for " + std::string(name));
}

Step make_binary(const StepSpec& spec) {
  std::string_view name = spec.node.op->name;
  if (name == "add") return map_step<2>(spec, Add{});
  if (name == "sub") return map_step<2>(spec, Sub{});
  if (name == "mul") return map_step<2>(spec, Mul{});
  if (name == "div") return map_step<2>(spec, Div{});
  fail(ErrorKind::internal, "no binary CUDA kernel for " + std::string(name));
}

Step make_affine(const StepSpec& spec) {
  const Attrs& a = spec.node.attrs;
  return map_step<1>(spec, Affine{static_cast<float>(a.real("scale")), static_cast<float>(a.real("shift"))});
}

Step make_clamp(const StepSpec& spec) {
  const Attrs& a = spec.node.attrs;
  return map_step<1>(spec, Clamp{static_cast<float>(a.real("low")), static_cast<float>(a.real("high"))});
}

Step make_mul_add(const StepSpec& spec) { return map_step<3>(spec, MulAdd{}); }

Step make_act_mul(const StepSpec& spec) {
  const std::string& act = spec.node.attrs.text("act");
  bool wide = spec.output().dtype == DType::f32;
  auto step = [&]<Act A>() {
    return wide ? map_step<2>(spec, ActMul<float, A>{}) : map_step<2>(spec, ActMul<__nv_bfloat16, A>{});
  };
  if (act == "silu") return step.template operator()<Act::silu>();
  if (act == "gelu_tanh") return step.template operator()<Act::gelu_tanh>();
  fail(ErrorKind::internal, "act_mul has no activation '" + act + "'");
}

bool supports_cast(const StepSpec& spec) {
  return is_float(spec.inputs[0].dtype) && (is_float(spec.output().dtype) || spec.output().dtype == DType::u8);
}

Step make_cast(const StepSpec& spec) {
  DType from = spec.inputs[0].dtype, to = spec.output().dtype;
  int64_t count = spec.output().shape.numel();
  Step step;
  step.run = [=](const StepArgs& args) {
    if (count == 0) return;
    with_float(from, [&]<class From>(From) {
      if (to == DType::u8) {
        bytes_kernel<<<static_cast<unsigned>(ceil_div(count, kThreads * 4)), kThreads, 0, stream_of(args)>>>(
            static_cast<const From*>(args.in[0]), static_cast<uint8_t*>(args.out), count);
        return;
      }
      with_float(to, [&]<class To>(To) {
        cast_kernel<<<static_cast<unsigned>(ceil_div(count, kThreads * 8)), kThreads, 0, stream_of(args)>>>(
            static_cast<const From*>(args.in[0]), static_cast<To*>(args.out), count);
      });
    });
    check(cudaGetLastError());
  };
  return step;
}

Step make_glu(const StepSpec& spec) {
  int64_t count = spec.output().shape.numel(), channels = spec.output().shape[-1];
  DType dtype = spec.output().dtype;
  Step step;
  step.run = [=](const StepArgs& args) {
    if (count == 0) return;
    with_float(dtype, [&]<class T>(T) {
      glu_kernel<<<static_cast<unsigned>(ceil_div(count, kThreads)), kThreads, 0, stream_of(args)>>>(
          static_cast<const T*>(args.in[0]), static_cast<T*>(args.out), count, channels);
    });
    check(cudaGetLastError());
  };
  return step;
}

}  // namespace kinora::cuda
