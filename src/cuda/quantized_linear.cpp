// Products with quantized weights. Rows of codes meet codes on the tensor cores of 8-bit types, and of FP4 on GPUs that
// have them (where this has not run yet: nvfp4.h); where x stays as it is, the weight becomes numbers of x's type in
// scratch memory first.
#include <algorithm>
#include <array>
#include <optional>

#include "cuda/codes_product.h"
#include "cuda/cublaslt.h"
#include "cuda/kernels.h"
#include "cuda/nvfp4.h"
#include "cuda/product_finish.h"
#include "cuda/quantize.h"
#include "graph/views.h"
#include "ops/quantize.h"

namespace kinora::cuda {
namespace {

// What is passed from one kernel to the next through scratch memory is made in parts that stay in the second-level
// cache: sums that another kernel finishes for some of the rows at a time, numbers of a weight for some of its rows.
constexpr int64_t kPartBytes = int64_t{24} << 20, kPartMultiple = 128;

// Into how large parts to cut `rows` of so many bytes: equal ones but for the last.
int64_t part_of(int64_t rows, int64_t row_bytes) {
  int64_t parts = std::max<int64_t>(1, ceil_div(rows * row_bytes, kPartBytes));
  return std::min(rows, ceil_div(ceil_div(rows, parts), kPartMultiple) * kPartMultiple);
}

size_t aligned(int64_t bytes) { return static_cast<size_t>(ceil_div(bytes, 256) * 256); }

struct Linear {
  QuantizedInputs at;
  int64_t m, n, k;
  int64_t row;  // elements from one row of the result to the next; 0: n
  DType dtype, bias_type;
  Act act;
  bool nvfp4;

  explicit Linear(const StepSpec& spec)
      : at(spec.node.attrs), dtype(spec.output().dtype), act(act_of(spec.node.attrs.text("act"))) {
    const Shape& out = spec.output().shape;
    n = out[-1];
    m = out.product(0, out.rank() - 1);
    k = decoded_shape(at.format, spec.inputs[at.codes].shape)[1];
    nvfp4 = is_nvfp4(at.format);
    bias_type = at.bias ? spec.inputs[at.bias].dtype : dtype;
    Ints rows = reshaped_strides(out, spec.out_strides, {m, n});
    row = m > 1 && !rows.empty() && rows[0] > n ? rows[0] : 0;
  }
  const void* given(const StepArgs& args, size_t input) const { return input ? args.in[input] : nullptr; }
};

ProductFinish finish_of(const StepSpec& spec, const Linear& l, DType sums) {
  ProductFinish finish{
      .sums = sums, .dtype = l.dtype, .bias_type = l.bias_type, .act = l.act, .columns = l.n, .out_row = l.row};
  finish.gated = l.at.gate != 0;
  if (!finish.gated) return finish;
  const Shape &out = spec.output().shape, &gate = spec.inputs[l.at.gate].shape;
  std::array<Ints, 1> strides{broadcast_strides(out, gate, contiguous_strides(gate))};
  strides[0].pop_back();
  finish.gates = make_layout<1>(out.dims().first(static_cast<size_t>(out.rank() - 1)), strides);
  return finish;
}

// A product whose result has the output's type, with as much of what follows as the library takes on; a kernel does
// the rest in place. Of `part` columns at a time, and of those that are left then.
struct OneProduct {
  int64_t part;
  Product whole, last;
  bool bias, residual;
  Act act_left;
  bool more;

  static std::optional<OneProduct> choose(const Linear& l, ProductShape shape, int64_t part) {
    bool biased = l.at.bias && l.bias_type == l.dtype, bias_first = biased || !l.at.bias;
    // The library's tanh is approximate: below the rounding of 16 bits, above that of float32.
    bool gelu = l.act == Act::gelu_tanh && l.dtype != DType::f32 && bias_first;
    // The library takes a residual with the result's rows alone.
    bool residual = l.at.residual && l.act == Act::none && !l.at.gate && bias_first && !l.row;
    if (part < l.n || l.row) shape.row = l.row ? l.row : l.n;
    for (int without = 0; without < 3; ++without) {  // nothing; the activation; all
      shape.bias = biased && without < 2;
      shape.residual = residual && without < 2;
      shape.gelu = gelu && without < 1;
      shape.n = part;
      Product whole(shape);
      if (l.n % part) shape.n = l.n % part;
      OneProduct one{part, whole, l.n % part ? Product(shape) : whole, shape.bias, shape.residual, l.act, false};
      if (!one.whole.available() || !one.last.available()) continue;
      if (shape.gelu) one.act_left = Act::none;
      one.more = one.act_left != Act::none || (l.at.bias && !one.bias) || (l.at.residual && !one.residual) || l.at.gate;
      return one;
    }
    return std::nullopt;
  }

  size_t workspace() const {
    return aligned(static_cast<int64_t>(std::max(whole.workspace_bytes(), last.workspace_bytes())));
  }

  // Columns [column, column + part); `x` and `weight` as the product takes them, the weight's rows of these columns.
  // The workspace is the start of the scratch memory.
  void run(const Linear& l, const StepArgs& args, int64_t column, const void* x, const void* weight,
           ProductScales scales) const {
    auto from = [&](size_t input) -> const void* {
      return static_cast<const std::byte*>(args.in[input]) + column * static_cast<int64_t>(dtype_size(l.dtype));
    };
    void* out = static_cast<std::byte*>(args.out) + column * static_cast<int64_t>(dtype_size(l.dtype));
    (l.n - column < part ? last : whole)
        .run(x, weight, bias ? from(l.at.bias) : nullptr, residual ? from(l.at.residual) : nullptr, out, args.scratch,
             stream_of(args), scales);
  }

  void finish(const ProductFinish& rest, const Linear& l, const StepArgs& args) const {
    if (!more) return;
    rest.enqueue(stream_of(args), {.sums = args.out,
                                   .row_scale = nullptr,
                                   .column_scale = nullptr,
                                   .bias = bias ? nullptr : l.given(args, l.at.bias),
                                   .gate = l.given(args, l.at.gate),
                                   .residual = residual ? nullptr : l.given(args, l.at.residual),
                                   .out = args.out,
                                   .rows = l.m,
                                   .first_row = 0});
  }
};

ProductShape product_shape(const Linear& l, DType dtype, DType operands) {
  ProductShape s{.m = l.m, .n = l.n, .k = l.k, .transpose_b = true, .dtype = dtype};
  if (operands != dtype) s.operands = operands;
  return s;
}

// The plain sums of codes, a part of the rows at a time, where no kernel of ours finishes them itself.
struct SumsProduct {
  int64_t part;
  Product whole, last;  // of `part` rows, and of those that are left then
  bool expanded;        // the codes become bf16, which holds them all: for shapes and devices without such a product

  static ProductShape narrow_shape(const Linear& l) {
    if (l.at.format == QuantFormat::int8) return product_shape(l, DType::i32, DType::i8);
    if (!l.nvfp4) return product_shape(l, DType::f32, DType::f8_e4m3);
    ProductShape shape = product_shape(l, DType::f32, DType::f32);
    shape.scales = shape.nvfp4 = true;
    return shape;
  }

  static SumsProduct choose(const Linear& l, bool narrow) {
    int64_t part = part_of(l.m, l.n * 4);
    auto made = [&](ProductShape shape, bool expanded) {
      shape.m = part;
      Product first(shape);
      if (l.m % part) shape.m = l.m % part;
      return SumsProduct{part, first, l.m % part ? Product(shape) : first, expanded};
    };
    if (narrow) {
      SumsProduct sums = made(narrow_shape(l), false);
      if (sums.whole.available() && sums.last.available()) return sums;
    }
    SumsProduct sums = made(product_shape(l, DType::f32, DType::bf16), true);
    if (!sums.whole.available() || !sums.last.available()) {
      fail(ErrorKind::internal, "cuBLASLt has no product of this shape");
    }
    return sums;
  }

  DType type(const Linear& l) const { return l.at.format == QuantFormat::int8 && !expanded ? DType::i32 : DType::f32; }
  size_t workspace() const {
    return aligned(static_cast<int64_t>(std::max(whole.workspace_bytes(), last.workspace_bytes())));
  }
  size_t sums_bytes(const Linear& l) const { return aligned(part * l.n * 4); }
  size_t rows_bytes(const Linear& l) const { return expanded ? aligned(part * l.k * 2) : 0; }
  size_t scratch_bytes(const Linear& l) const {
    return workspace() + sums_bytes(l) + rows_bytes(l) + (expanded ? aligned(l.n * l.k * 2) : 0);
  }

  // Codes without the scales that the finish applies; `scales` are nvfp4's of blocks.
  static void expand(const Linear& l, cudaStream_t stream, const void* codes, const void* scales, int64_t count,
                     void* out) {
    if (l.nvfp4) return TiledNvfp4{codes, scales, nullptr, count, l.k}.decode(stream, DType::bf16, out);
    Decoder{l.at.format, count, l.k}.enqueue(stream, codes, nullptr, nullptr, DType::bf16, out);
  }

  void run(const ProductFinish& finish, const Linear& l, const StepArgs& args) const {
    const auto* given = static_cast<const std::byte*>(args.in[0]);
    Nvfp4Rows tiled{l.m, l.k};
    const std::byte* codes = given + (l.nvfp4 ? tiled.codes_at() : 0);
    const auto* row_scale = reinterpret_cast<const float*>(given + (l.nvfp4 ? tiled.row_scales_at() : l.m * l.k));
    std::byte *sums = args.scratch + workspace(), *rows = sums + sums_bytes(l), *weight = rows + rows_bytes(l);
    cudaStream_t stream = stream_of(args);
    if (expanded) expand(l, stream, args.in[l.at.codes], args.in[l.at.scale], l.n, weight);
    for (int64_t row = 0; row < l.m; row += part) {
      auto element = static_cast<int64_t>(dtype_size(l.dtype));
      int64_t count = std::min(part, l.m - row);
      const void* x = codes + row * (l.nvfp4 ? l.k / 2 : l.k);
      const void* scales = given + (l.nvfp4 ? tiled_scale_bytes(row, tiled.blocks()) : 0);  // parts begin with a tile
      if (expanded) {
        expand(l, stream, x, scales, count, rows);
        x = rows;
      }
      (count == part ? whole : last)
          .run(x, expanded ? weight : args.in[l.at.codes], nullptr, nullptr, sums, args.scratch, stream,
               {scales, args.in[l.at.scale]});
      const auto* residual = static_cast<const std::byte*>(l.given(args, l.at.residual));
      finish.enqueue(stream, {.sums = sums,
                              .row_scale = row_scale + row,
                              .column_scale = static_cast<const float*>(args.in[l.nvfp4 ? l.at.scale_2 : l.at.scale]),
                              .bias = l.given(args, l.at.bias),
                              .gate = l.given(args, l.at.gate),
                              .residual = residual ? residual + row * l.n * element : nullptr,
                              .out = static_cast<std::byte*>(args.out) + row * (l.row ? l.row : l.n) * element,
                              .rows = count,
                              .first_row = row});
    }
  }
};

// Of a row of the weight.
int64_t code_bytes(const Linear& l) { return l.at.format == QuantFormat::nvfp4 ? l.k / 2 : l.k; }
int64_t scale_bytes(const Linear& l) { return l.at.format == QuantFormat::nvfp4 ? l.k / kNvfp4Block : 4; }
const void* rows_from(const void* base, int64_t row, int64_t row_bytes) {
  return static_cast<const std::byte*>(base) + row * row_bytes;
}

bool supports_product(const StepSpec& spec) {
  Linear l(spec);
  return is_act(spec.node.attrs.text("act")) && l.m * l.n * l.k > 0;
}

}  // namespace

bool has_fp8_products() {
  const DeviceLimits& limits = device_limits();
  return limits.major * 10 + limits.minor >= 89;
}

bool supports_quantized_linear_rows(const StepSpec& spec) {
  QuantizedInputs at(spec.node.attrs);
  bool ready = !is_nvfp4(at.format) || has_tiled_scales(spec.inputs[at.scale].shape, at.format);
  return ready && supports_product(spec);
}

Step make_quantized_linear_rows(const StepSpec& spec) {
  Linear l(spec);
  bool fp8 = l.at.format == QuantFormat::fp8;
  Step step;
  // The 8-bit floats' sums are kept in less than float32, so that a float32 result comes from wider products.
  bool narrow = !fp8 || (has_fp8_products() && l.dtype != DType::f32);
  // cuBLASLt takes rows of FP4 that are multiples of 16 bytes.
  if (l.nvfp4) narrow = has_nvfp4_products() && l.k % 32 == 0;
  if (!l.nvfp4 && narrow) {
    CodesProduct product(fp8 ? DType::f8_e4m3 : DType::i8, l.m, l.n, l.k, finish_of(spec, l, l.dtype));
    if (product.available()) {
      step.run = [product, l](const StepArgs& args) {
        const auto* codes = static_cast<const std::byte*>(args.in[0]);
        product.enqueue(stream_of(args), codes, args.in[l.at.codes],
                        {.row_scale = reinterpret_cast<const float*>(codes + l.m * l.k),
                         .column_scale = static_cast<const float*>(args.in[l.at.scale]),
                         .bias = l.given(args, l.at.bias),
                         .gate = l.given(args, l.at.gate),
                         .residual = l.given(args, l.at.residual),
                         .out = args.out});
      };
      return step;
    }
  }
  if (fp8 && narrow) {
    ProductShape shape = product_shape(l, l.dtype, DType::f8_e4m3);
    shape.scales = true;
    if (std::optional<OneProduct> one = OneProduct::choose(l, shape, l.n)) {
      ProductFinish finish = finish_of(spec, l, l.dtype);
      finish.act = one->act_left;
      finish.sums_row = l.row;
      step.scratch_bytes = one->workspace();
      step.run = [one = *one, finish, l](const StepArgs& args) {
        const auto* codes = static_cast<const std::byte*>(args.in[0]);
        one.run(l, args, 0, codes, args.in[l.at.codes], {codes + l.m * l.k, args.in[l.at.scale]});
        one.finish(finish, l, args);
      };
      return step;
    }
  }
  SumsProduct sums = SumsProduct::choose(l, narrow);
  ProductFinish finish = finish_of(spec, l, sums.type(l));
  step.scratch_bytes = sums.scratch_bytes(l);
  step.run = [=](const StepArgs& args) { sums.run(finish, l, args); };
  return step;
}

bool supports_quantized_linear(const StepSpec& spec) {
  return supports_product(spec) && !quantizes_rows(quant_format_from_name(spec.node.attrs.text("format")));
}

Step make_quantized_linear(const StepSpec& spec) {
  Linear l(spec);
  auto row_bytes = l.k * static_cast<int64_t>(dtype_size(l.dtype));
  std::optional<OneProduct> one = OneProduct::choose(l, product_shape(l, l.dtype, l.dtype), part_of(l.n, row_bytes));
  if (!one) fail(ErrorKind::internal, "cuBLASLt has no product of this shape");
  ProductFinish finish = finish_of(spec, l, l.dtype);
  finish.act = one->act_left;
  finish.sums_row = l.row;
  Step step;
  step.scratch_bytes = one->workspace() + static_cast<size_t>(one->part * row_bytes);
  step.run = [one = *one, finish, l](const StepArgs& args) {
    std::byte* weight = args.scratch + one.workspace();
    for (int64_t row = 0; row < l.n; row += one.part) {
      Decoder{l.at.format, std::min(one.part, l.n - row), l.k}.enqueue(
          stream_of(args), rows_from(args.in[l.at.codes], row, code_bytes(l)),
          rows_from(args.in[l.at.scale], row, scale_bytes(l)), l.given(args, l.at.scale_2), l.dtype, weight);
      one.run(l, args, row, args.in[0], weight, {});
    }
    one.finish(finish, l, args);
  };
  return step;
}

}  // namespace kinora::cuda
