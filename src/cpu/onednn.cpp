#include "cpu/onednn.h"

#include <omp.h>

#include <dnnl.hpp>

#include "core/error.h"

namespace kinora::cpu {
namespace {

const dnnl::engine& engine() {
  static const dnnl::engine instance(dnnl::engine::kind::cpu, 0);
  return instance;
}

dnnl::stream& stream() {
  static thread_local dnnl::stream instance(engine());
  return instance;
}

dnnl::memory::data_type type_of(DType dtype) {
  if (dtype == DType::i8) return dnnl::memory::data_type::s8;
  return dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

dnnl::memory wrap(const dnnl::memory::desc& desc, const void* data) {
  return dnnl::memory(desc, engine(), const_cast<void*>(data));
}

// A reorder built once for one pair of layouts.
struct Reorder {
  dnnl::memory::desc from, to;
  dnnl::reorder primitive;
  Reorder(const dnnl::memory::desc& source, const dnnl::memory::desc& target)
      : from(source), to(target), primitive(dnnl::reorder::primitive_desc(engine(), source, engine(), target)) {}
  void run(const void* source, void* target) const {
    dnnl::memory a = wrap(from, source), b = wrap(to, target);
    primitive.execute(stream(), a, b);
  }
};

template <class F>
auto guarded(F&& body) {
  try {
    return body();
  } catch (const dnnl::error& error) {
    fail(error.status == dnnl_out_of_memory ? ErrorKind::resource : ErrorKind::internal,
         std::string("oneDNN refused: ") + error.what());
  }
}

dnnl::primitive_attr user_scratchpad() {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attr;
}

}  // namespace

void use_one_thread() {
  static thread_local bool done = false;
  if (!done) omp_set_num_threads(1);
  done = true;
}

bool has_native_bf16() {
  return __builtin_cpu_supports("avx512bf16") && dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_bf16;
}

// Without VNNI oneDNN's sums of int8 products saturate on the way.
bool has_native_int8() {
  return __builtin_cpu_supports("avx512vnni") && dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_vnni;
}

struct MatmulPrimitive::State {
  dnnl::matmul::primitive_desc desc;
  dnnl::matmul primitive;
  dnnl::memory::desc a, c;
  Shape shape;
  mutable std::shared_ptr<Reorder> from_rows_of_k, from_rows_of_n;
};

MatmulPrimitive::MatmulPrimitive(const Shape& s, const MatmulPrimitive* alike) : state_(std::make_shared<State>()) {
  use_one_thread();
  guarded([&] {
    using Desc = dnnl::memory::desc;
    auto type = type_of(s.dtype);
    Desc a({s.m, s.k}, type, dnnl::memory::dims{s.k, 1});
    Desc b = s.dtype == DType::i8 ? Desc({s.k, s.n}, type, dnnl::memory::dims{1, s.k})
             : alike              ? alike->state_->desc.weights_desc()
                                  : Desc({s.k, s.n}, type, dnnl::memory::format_tag::any);
    auto sums = s.dtype == DType::i8 ? dnnl::memory::data_type::s32 : dnnl::memory::data_type::f32;
    Desc c({s.m, s.n}, sums, dnnl::memory::dims{s.n, 1});
#if DNNL_VERSION_MAJOR >= 3
    state_->desc = dnnl::matmul::primitive_desc(engine(), a, b, c, user_scratchpad());
#else
    state_->desc = dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), user_scratchpad(), engine());
#endif
    state_->primitive = dnnl::matmul(state_->desc);
    state_->a = a;
    state_->c = c;
    state_->shape = s;
    if (s.dtype == DType::i8) return;
    state_->from_rows_of_k =
        std::make_shared<Reorder>(Desc({s.k, s.n}, type, dnnl::memory::dims{1, s.k}), state_->desc.weights_desc());
    state_->from_rows_of_n =
        std::make_shared<Reorder>(Desc({s.k, s.n}, type, dnnl::memory::dims{s.n, 1}), state_->desc.weights_desc());
  });
}

size_t MatmulPrimitive::packed_bytes() const { return state_->desc.weights_desc().get_size(); }
size_t MatmulPrimitive::workspace_bytes() const { return state_->desc.scratchpad_desc().get_size(); }

void MatmulPrimitive::pack(const void* b, int64_t ldb, bool transposed, void* packed) const {
  use_one_thread();
  const Shape& s = state_->shape;
  guarded([&] {
    if (ldb == (transposed ? s.k : s.n)) {
      (transposed ? state_->from_rows_of_k : state_->from_rows_of_n)->run(b, packed);
    } else {
      dnnl::memory::dims strides = transposed ? dnnl::memory::dims{1, ldb} : dnnl::memory::dims{ldb, 1};
      Reorder(dnnl::memory::desc({s.k, s.n}, type_of(s.dtype), strides), state_->desc.weights_desc()).run(b, packed);
    }
  });
}

void MatmulPrimitive::run(const void* a, const void* packed, void* c, void* workspace) const {
  use_one_thread();
  guarded([&] {
    state_->primitive.execute(stream(), {{DNNL_ARG_SRC, wrap(state_->a, a)},
                                         {DNNL_ARG_WEIGHTS, wrap(state_->desc.weights_desc(), packed)},
                                         {DNNL_ARG_DST, wrap(state_->c, c)},
                                         {DNNL_ARG_SCRATCHPAD, wrap(state_->desc.scratchpad_desc(), workspace)}});
  });
}

struct ConvPrimitive::State {
  dnnl::convolution_forward::primitive_desc desc;
  dnnl::convolution_forward primitive;
  dnnl::memory::desc x, y;
  std::shared_ptr<Reorder> reorder;
};

ConvPrimitive::ConvPrimitive(const Shape& s) : state_(std::make_shared<State>()) {
  use_one_thread();
  guarded([&] {
    using Desc = dnnl::memory::desc;
    using Dims = dnnl::memory::dims;
    auto type = type_of(s.dtype);
    bool film = s.kernel_t > 1;
    int64_t x_frame = s.rows_in * s.width_in * s.x_pixel, y_frame = s.rows_out * s.width_out * s.y_pixel;
    // Gives a list its entry for the frames when there is such an axis.
    auto with_frames = [film](Dims dims, size_t at, int64_t value) {
      if (film) dims.insert(dims.begin() + static_cast<std::ptrdiff_t>(at), value);
      return dims;
    };
    Desc x(with_frames({1, s.in_channels, s.rows_in, s.width_in}, 2, s.frames_in), type,
           with_frames({s.frames_in * x_frame, 1, s.width_in * s.x_pixel, s.x_pixel}, 2, x_frame));
    Desc y(with_frames({1, s.out_channels, s.rows_out, s.width_out}, 2, 1), dnnl::memory::data_type::f32,
           with_frames({y_frame, 1, s.width_out * s.y_pixel, s.y_pixel}, 2, y_frame));
    Dims weight_dims = with_frames({s.out_channels, s.in_channels, s.kernel_h, s.kernel_w}, 2, s.kernel_t);
    Desc weight(weight_dims, type, dnnl::memory::format_tag::any);
    Dims strides = with_frames({s.stride, s.stride_w ? s.stride_w : s.stride}, 0, 1);
    Dims before = with_frames({s.pad_top, s.pad_left}, 0, s.pad_front);
    Dims after = with_frames({s.pad_bottom, s.pad_right}, 0, s.kernel_t - s.pad_front - s.frames_in);
    auto kind = dnnl::prop_kind::forward_inference;
    auto algorithm = dnnl::algorithm::convolution_direct;
#if DNNL_VERSION_MAJOR >= 3
    state_->desc = dnnl::convolution_forward::primitive_desc(engine(), kind, algorithm, x, weight, y, strides, before,
                                                             after, user_scratchpad());
#else
    state_->desc = dnnl::convolution_forward::primitive_desc(
        dnnl::convolution_forward::desc(kind, algorithm, x, weight, y, strides, before, after), user_scratchpad(),
        engine());
#endif
    state_->primitive = dnnl::convolution_forward(state_->desc);
    state_->x = x;
    state_->y = y;
    auto stored = film ? dnnl::memory::format_tag::oidhw : dnnl::memory::format_tag::oihw;
    state_->reorder = std::make_shared<Reorder>(Desc(weight_dims, type, stored), state_->desc.weights_desc());
  });
}

size_t ConvPrimitive::packed_bytes() const { return state_->desc.weights_desc().get_size(); }
size_t ConvPrimitive::workspace_bytes() const { return state_->desc.scratchpad_desc().get_size(); }

void ConvPrimitive::pack(const void* weight, void* packed) const {
  use_one_thread();
  guarded([&] { state_->reorder->run(weight, packed); });
}

void ConvPrimitive::run(const void* x, const void* packed, float* y, void* workspace) const {
  use_one_thread();
  guarded([&] {
    state_->primitive.execute(stream(), {{DNNL_ARG_SRC, wrap(state_->x, x)},
                                         {DNNL_ARG_WEIGHTS, wrap(state_->desc.weights_desc(), packed)},
                                         {DNNL_ARG_DST, wrap(state_->y, y)},
                                         {DNNL_ARG_SCRATCHPAD, wrap(state_->desc.scratchpad_desc(), workspace)}});
  });
}

}  // namespace kinora::cpu
