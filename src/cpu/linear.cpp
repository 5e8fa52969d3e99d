// Products. The work is cut by shape alone into tasks of (panel of output columns) x (block of rows), each a
// one-threaded oneDNN product, so that the bits depend neither on the number of threads nor on the batch. The panels of
// a weight are packed first: once and for all where the weight allows it, else at each run, a part of the weight at a
// time.
#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/onednn.h"
#include "ops/quantize.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kPanel = 128;     // columns of a panel
constexpr int64_t kMostRows = 256;  // rows of one product
constexpr int64_t kLeastRows = 64;
constexpr int64_t kManyTasks = 64;               // blocks get smaller until there are so many tasks
constexpr int64_t kFewRows = 8;                  // up to here dot products beat packing
constexpr size_t kPackedPart = size_t{8} << 20;  // bytes of a weight that are packed at a time

Unary activation_of(const std::string& name) {
  if (name == "silu") return Unary::silu;
  if (name == "relu") return Unary::relu;
  if (name == "gelu_tanh") return Unary::gelu_tanh;
  if (name == "gelu") return Unary::gelu;
  if (name == "quick_gelu") return Unary::quick_gelu;
  fail(ErrorKind::internal, "linear: unknown activation " + name);
}

// Where the inputs of a product stand (linear, linear_add, quantized_linear, quantized_linear_rows), and what is done
// to it.
struct Inputs {
  size_t x = 0, weight = 1, residual = 0, gate = 3, bias = 2, scale = 0, scale_2 = 0;
  bool has_bias = false, has_gate = false, has_residual = false, has_act = false;
  bool quantized = false, rows = false;  // rows: x is what quantize_rows made
  Unary act = Unary::silu;

  explicit Inputs(const StepSpec& spec) {
    const Attrs& attrs = spec.node.attrs;
    has_residual = spec.node.op->name == "linear_add";
    quantized = spec.node.op->name.starts_with("quantized_");
    if (quantized) {
      rows = spec.node.op->name == "quantized_linear_rows";
      QuantizedInputs at(attrs);
      scale = at.scale;
      scale_2 = at.scale_2;
      residual = at.residual;
      gate = at.gate;
      bias = at.bias;
      has_residual = residual;
      has_gate = gate;
      has_bias = bias;
      has_act = attrs.text("act") != "none";
      if (has_act) act = activation_of(attrs.text("act"));
      return;
    }
    if (has_residual) {
      x = 1;
      weight = 2;
      has_gate = attrs.integer("gate");
      has_bias = attrs.integer("bias");
    } else {
      has_bias = spec.inputs.size() == 3;
      has_act = attrs.text("act") != "none";
      if (has_act) act = activation_of(attrs.text("act"));
    }
    bias = spec.inputs.size() - 1;
  }
};

// What happens to a tile of the product before it is stored.
struct Epilogue {
  Inputs in;
  DType type, bias_type = DType::f32;
  int64_t n;
  int64_t row_codes = 0;  // bytes of the codes before the scales of quantized rows
  bool whole = false;     // the product is of int32
  std::vector<int64_t> gates;

  explicit Epilogue(const StepSpec& spec) : in(spec), type(spec.output().dtype), n(spec.output().shape[-1]) {
    if (in.rows) row_codes = spec.inputs[in.x].shape[0] - 4 * (spec.output().shape.numel() / std::max<int64_t>(n, 1));
    if (in.has_bias) bias_type = spec.inputs[in.bias].dtype;
    if (in.has_gate) gates = row_index(spec.inputs[in.gate].shape, spec.output().shape);
  }

  // Whether the result may take the residual's place.
  bool in_place() const { return in.has_residual && !in.quantized; }

  // c [rows, width] is the product at (row, column) of the result.
  void store(const StepArgs& args, float* c, int64_t row, int64_t rows, int64_t column, int64_t width) const {
    float bias[kPanel], gate[kPanel], same[kPanel];
    auto count = static_cast<size_t>(width);
    RowFinish f{.whole = whole, .act = in.has_act, .unary = in.act, .type = type};
    const float* factors = nullptr;
    if (in.quantized && in.scale_2) {
      std::fill_n(same, width, *static_cast<const float*>(args.in[in.scale_2]));
      f.scale = same;
    } else if (in.quantized) {
      f.scale = static_cast<const float*>(args.in[in.scale]) + column;
    }
    if (in.rows) {
      factors = reinterpret_cast<const float*>(static_cast<const std::byte*>(args.in[in.x]) + row_codes);
    }
    if (in.has_bias) {
      simd().load(bias_type, advance(args.in[in.bias], bias_type, column), bias, count);
      f.bias = bias;
    }
    int64_t loaded = -1;
    for (int64_t r = 0; r < rows; ++r) {
      int64_t at = (row + r) * n + column;
      if (factors) f.factor = factors[row + r];
      if (in.has_residual) f.residual = advance(args.in[in.residual], type, at);
      if (in.has_gate && gates[static_cast<size_t>(row + r)] != loaded) {
        loaded = gates[static_cast<size_t>(row + r)];
        simd().load(type, advance(args.in[in.gate], type, loaded * n + column), gate, count);
        f.gate = gate;
      }
      simd().finish_row(f, c + r * width, advance(args.out, type, at), count);
    }
  }
};

// Products for every mix of full and last panels and row blocks.
struct Blocks {
  int64_t count, full, last;  // how many, and the size of all but the last, and of the last
  Blocks(int64_t total, int64_t size)
      : count((total + size - 1) / size), full(std::min(size, total)), last(total - (count - 1) * size) {}
  int64_t size(int64_t i) const { return i == count - 1 ? last : full; }
};

struct PanelProducts {
  Blocks panels, rows;
  std::vector<MatmulPrimitive> primitives;  // [full rows, last rows] x [full panel, last panel]
  size_t packed = 0, workspace = 0;         // bytes of one panel, and of a run

  PanelProducts(int64_t m, int64_t n, int64_t k, int64_t block, DType dtype) : panels(n, kPanel), rows(m, block) {
    primitives.reserve(4);
    for (int64_t r : {rows.full, rows.last}) {
      for (int64_t p : {panels.full, panels.last}) {
        const MatmulPrimitive* alike = primitives.size() < 2 ? nullptr : &primitives[primitives.size() - 2];
        primitives.emplace_back(MatmulPrimitive::Shape{r, p, k, dtype}, alike);
        packed = std::max(packed, primitives.back().packed_bytes());
        workspace = std::max(workspace, primitives.back().workspace_bytes());
      }
    }
    packed = (packed + 63) / 64 * 64;
  }
  const MatmulPrimitive& at(int64_t row_block, int64_t panel) const {
    return primitives[(row_block == rows.count - 1 ? 2u : 0u) + (panel == panels.count - 1 ? 1u : 0u)];
  }
};

int64_t block_rows(int64_t items, int64_t m, int64_t n) {
  int64_t rows = kMostRows, panels = (n + kPanel - 1) / kPanel;
  while (rows > kLeastRows && items * panels * ((m + rows - 1) / rows) < kManyTasks) rows /= 2;
  return rows;
}

// Rows of k elements in another type, by way of `line` [k]. Codes of quantized weights become the numbers they stand
// for without their row's scale, which is applied to the product; all of them are exact in bfloat16.
struct RowConversion {
  DType from, to;
  int64_t k;
  bool fp4 = false;
  Nvfp4Rows tiles{};  // of rows of x that are nvfp4
  // `scales`: of nvfp4 weights alone.
  void run(const void* source, const void* scales, int64_t first, int64_t rows, std::byte* target, float* line) const {
    auto n = static_cast<size_t>(k);
    for (int64_t r = 0; r < rows; ++r) {
      std::byte* out = advance(target, to, r * k);
      float* floats = to == DType::f32 ? reinterpret_cast<float*>(out) : line;
      if (fp4 && !scales) {
        load_tiled(static_cast<const uint8_t*>(source), first + r, floats);
      } else if (fp4) {
        simd().load_fp4(static_cast<const uint8_t*>(source) + (first + r) * k / 2,
                        static_cast<const uint8_t*>(scales) + (first + r) * k / kNvfp4Block, floats, n);
      } else {
        simd().load(from, advance(source, from, (first + r) * k), floats, n);
      }
      if (to != DType::f32) simd().store(to, line, out, n);
    }
  }
  // The scales of four blocks follow each other.
  void load_tiled(const uint8_t* rows, int64_t row, float* out) const {
    constexpr int64_t kStep = kScaleTileBlocks * kNvfp4Block;
    const uint8_t* codes = rows + tiles.codes_at() + row * k / 2;
    for (int64_t j = 0; j < k; j += kStep) {
      const uint8_t* scales = rows + tiled_scale_at(row, j / kNvfp4Block, tiles.blocks());
      simd().load_fp4(codes + j / 2, scales, out + j, static_cast<size_t>(std::min(kStep, k - j)));
    }
  }
};

// How the operands of a product are stored.
struct Stored {
  DType x, weight;
  bool fp4 = false, coded = false;  // coded: x is what quantize_rows made
  int64_t n, k;
  Stored(const StepSpec& spec, const Inputs& in) : x(spec.inputs[in.x].dtype), weight(spec.inputs[in.weight].dtype) {
    fp4 = in.scale_2 != 0;
    coded = in.rows;
    if (coded) x = weight;
    n = spec.inputs[in.weight].shape[0];
    k = spec.inputs[in.weight].shape[1] * (fp4 ? 2 : 1);
  }
  RowConversion weights_to(DType to) const { return {weight, to, k, fp4}; }
  // x as its rows are, from the start of the input.
  RowConversion rows_to(DType to, int64_t m) const { return {x, to, k, fp4 && coded, {m, k}}; }
  // In which the product is computed: x's precision is kept, whole numbers and FP8 lose nothing in bfloat16.
  DType compute() const {
    if (x == DType::i8 && has_native_int8()) return DType::i8;
    return x != DType::f32 && x != DType::f16 && has_native_bf16() ? DType::bf16 : DType::f32;
  }
};

Step few_rows(const StepSpec& spec, int64_t m) {
  Epilogue epilogue(spec);
  size_t x_in = epilogue.in.x, w_in = epilogue.in.weight, s_in = epilogue.in.scale;
  Stored stored(spec, epilogue.in);
  int64_t n = stored.n, k = stored.k;
  RowConversion w_rows = stored.weights_to(DType::f32), x_conversion = stored.rows_to(DType::f32, m);
  Workspace ws;
  size_t w_row = ws.add(static_cast<size_t>(k) * 4), x_rows = ws.add(static_cast<size_t>(m * k) * 4),
         y_rows = ws.add(static_cast<size_t>(m * kPanel) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.in_place = epilogue.in_place();
  step.run = [=](const StepArgs& args) {
    args.pool.run((n + kPanel - 1) / kPanel, [&](int64_t panel, int worker) {
      float *w = ws.at(args, worker, w_row), *x = ws.at(args, worker, x_rows), *y = ws.at(args, worker, y_rows);
      x_conversion.run(args.in[x_in], nullptr, 0, m, reinterpret_cast<std::byte*>(x), nullptr);
      int64_t begin = panel * kPanel, width = std::min(kPanel, n - begin);
      for (int64_t c = 0; c < width; ++c) {
        w_rows.run(args.in[w_in], args.in[s_in], begin + c, 1, reinterpret_cast<std::byte*>(w), nullptr);
        for (int64_t r = 0; r < m; ++r) y[r * width + c] = simd().dot(x + r * k, w, static_cast<size_t>(k));
      }
      epilogue.store(args, y, 0, m, begin, width);
    });
  };
  return step;
}

// The product of many rows: panels of the weight, packed, by blocks of rows.
class ManyRows {
 public:
  ManyRows(const StepSpec& spec, int64_t items, int64_t m)
      : epilogue_(spec),
        stored_(spec, epilogue_.in),
        compute_(stored_.compute()),
        items_(items),
        m_(m),
        convert_x_(stored_.x != compute_),
        convert_w_(stored_.weight != compute_),
        x_rows_(stored_.rows_to(compute_, items * m)),
        w_rows_(stored_.weights_to(compute_)),
        products_(m, stored_.n, stored_.k, block_rows(items, m, stored_.n), compute_),
        as_stored_(compute_ == DType::i8) {
    epilogue_.whole = compute_ == DType::i8;
    choose_packing(spec);
    lay_out_scratch(spec.threads);
  }

  size_t scratch_bytes() const { return scratch_bytes_; }
  bool in_place() const { return epilogue_.in_place(); }

  void run(const StepArgs& args) const {
    int64_t panels = products_.panels.count;
    if (as_stored_) return multiply(args, 0, panels, static_cast<const std::byte*>(args.in[epilogue_.in.weight]));
    if (kept_.defined()) {
      auto packed =
          kept_.repacked()->get(layout_, static_cast<size_t>(panels) * products_.packed, [&](std::byte* memory) {
            pack(args, 0, panels, memory);
            kept_.release_pages();
          });
      return multiply(args, 0, panels, packed.get());
    }
    for (int64_t first = 0; first < panels; first += part_) {
      int64_t count = std::min(part_, panels - first);
      pack(args, first, count, args.scratch + packed_at_);
      multiply(args, first, count, args.scratch + packed_at_);
    }
  }

 private:
  void choose_packing(const StepSpec& spec) {
    // A packed copy replaces the stored weight in memory, so it must not be larger.
    const Tensor* weight = spec.values[epilogue_.in.weight];
    bool smaller = dtype_size(compute_) <= dtype_size(stored_.weight);
    if (weight && smaller && !as_stored_ && weight->repacked()) kept_ = *weight;
    layout_ = std::string(dtype_name(compute_)) + " panels of " + std::to_string(products_.panels.full) + " x " +
              std::to_string(stored_.k) + ", " + std::to_string(products_.packed) + " bytes each";
    if (!as_stored_ && !kept_.defined())
      part_ = std::clamp<int64_t>(static_cast<int64_t>(kPackedPart / products_.packed), 1, products_.panels.count);
  }

  void lay_out_scratch(int threads) {
    size_t element = dtype_size(compute_);
    auto k = static_cast<size_t>(stored_.k), rows = static_cast<size_t>(products_.rows.full);
    panel_at_ = ws_.add(convert_w_ ? kPanel * k * element : 0);
    line_at_ = ws_.add(convert_w_ || convert_x_ ? k * 4 : 0);
    block_at_ = ws_.add(sizeof(int64_t));
    x_at_ = ws_.add(convert_x_ ? rows * k * element : 0);
    y_at_ = ws_.add(rows * kPanel * 4);
    work_at_ = ws_.add(products_.workspace);
    packed_at_ = ws_.total(threads);
    scratch_bytes_ = packed_at_ + static_cast<size_t>(part_) * products_.packed;
  }

  // Panels [first, first + count).
  void pack(const StepArgs& args, int64_t first, int64_t count, std::byte* target) const {
    args.pool.run(count, [&](int64_t i, int worker) {
      int64_t width = products_.panels.size(first + i), row = (first + i) * kPanel;
      const void* w = rows_of_weight(args, worker, row, width);
      products_.at(0, first + i).pack(w, stored_.k, true, target + static_cast<size_t>(i) * products_.packed);
    });
  }

  // `packed`: panels [first, first + count).
  void multiply(const StepArgs& args, int64_t first, int64_t count, const std::byte* packed) const {
    for (int worker = 0; worker < args.pool.size(); ++worker) *ws_.at<int64_t>(args, worker, block_at_) = -1;
    int64_t blocks = products_.rows.count;
    args.pool.run(items_ * blocks * count, [&](int64_t task, int worker) {
      int64_t panel = first + task % count, block = task / count % blocks, item = task / count / blocks;
      int64_t rows = products_.rows.size(block), row = item * m_ + block * products_.rows.full;
      const void* x = rows_of_x(args, worker, row, rows);
      float* y = ws_.at(args, worker, y_at_);
      products_.at(block, panel)
          .run(x, packed + static_cast<size_t>(panel - first) * products_.packed, y, ws_.at(args, worker, work_at_));
      epilogue_.store(args, y, row, rows, panel * kPanel, products_.panels.size(panel));
    });
  }

  // In the type of the product.
  const void* rows_of_weight(const StepArgs& args, int worker, int64_t row, int64_t rows) const {
    const void* weight = args.in[epilogue_.in.weight];
    if (!convert_w_) return advance(weight, stored_.weight, row * stored_.k);
    auto* converted = ws_.at<std::byte>(args, worker, panel_at_);
    w_rows_.run(weight, args.in[epilogue_.in.scale], row, rows, converted, ws_.at(args, worker, line_at_));
    return converted;
  }

  // The same; what the thread has converted for one panel serves the next.
  const void* rows_of_x(const StepArgs& args, int worker, int64_t row, int64_t rows) const {
    const void* x = args.in[epilogue_.in.x];
    if (!convert_x_) return advance(x, stored_.x, row * stored_.k);
    auto* converted = ws_.at<std::byte>(args, worker, x_at_);
    int64_t& last = *ws_.at<int64_t>(args, worker, block_at_);
    if (last != row) x_rows_.run(x, nullptr, row, rows, converted, ws_.at(args, worker, line_at_));
    last = row;
    return converted;
  }

  Epilogue epilogue_;
  Stored stored_;
  DType compute_;
  int64_t items_, m_;  // m: rows of an item
  bool convert_x_, convert_w_;
  RowConversion x_rows_, w_rows_;
  PanelProducts products_;
  bool as_stored_;      // the weight is multiplied as it lies
  Tensor kept_;         // the weight, if its packed copy is kept beside it
  std::string layout_;  // of that copy
  int64_t part_ = 0;    // panels that are packed at a time, if at each run
  Workspace ws_;
  // block: which rows of x the thread has converted last.
  size_t panel_at_ = 0, line_at_ = 0, block_at_ = 0, x_at_ = 0, y_at_ = 0, work_at_ = 0;
  size_t packed_at_ = 0, scratch_bytes_ = 0;  // packed: after the threads' parts
};

}  // namespace

Step make_linear(const StepSpec& spec) {
  const Shape& out = spec.output().shape;
  int64_t total = out.product(0, out.rank() - 1), items = out.rank() > 2 ? out[0] : 1;
  int64_t m = total / std::max<int64_t>(items, 1);
  if (m <= kFewRows) return few_rows(spec, total);
  auto product = std::make_shared<const ManyRows>(spec, items, m);
  Step step;
  step.scratch_bytes = product->scratch_bytes();
  step.in_place = product->in_place();
  step.run = [product](const StepArgs& args) { product->run(args); };
  return step;
}

// Rows are quantized by a step of their own (share_quantized_rows).
bool supports_quantized_linear(const StepSpec& spec) {
  return !quantizes_rows(QuantizedInputs(spec.node.attrs).format);
}

// Tiled scales are for other machines.
bool supports_quantized_linear_rows(const StepSpec& spec) {
  QuantizedInputs at(spec.node.attrs);
  return !has_tiled_scales(spec.inputs[at.scale].shape, at.format);
}

// The general product of two activations, always computed in float32; one task per batch item and panel.
Step make_matmul(const StepSpec& spec) {
  const Shape &sa = spec.inputs[0].shape, &sb = spec.inputs[1].shape;
  bool ta = spec.node.attrs.integer("transpose_a"), tb = spec.node.attrs.integer("transpose_b");
  DType dtype = spec.output().dtype;
  int64_t m = spec.output().shape[-2], n = spec.output().shape[-1], k = ta ? sa[-2] : sa[-1];
  int64_t items = sa.product(0, sa.rank() - 2);
  bool shared_b = sb.rank() == 2;
  if (m == 0 || n == 0 || k == 0 || items == 0) {
    size_t bytes = spec.output().bytes();
    Step zero;
    zero.run = [bytes](const StepArgs& args) { std::memset(args.out, 0, bytes); };
    return zero;
  }
  PanelProducts products(m, n, k, kMostRows, DType::f32);
  Workspace ws;
  size_t a_at = ws.add(static_cast<size_t>(products.rows.full * k) * 4),
         b_at = ws.add(static_cast<size_t>(kPanel * k) * 4);
  size_t packed_at = ws.add(products.packed), y_at = ws.add(static_cast<size_t>(kMostRows * kPanel) * 4);
  size_t work_at = ws.add(products.workspace), line_at = ws.add(static_cast<size_t>(std::max(m, n)) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    args.pool.run(items * products.panels.count, [&](int64_t task, int worker) {
      int64_t item = task / products.panels.count, panel = task % products.panels.count;
      int64_t width = products.panels.size(panel), column = panel * kPanel;
      float *a = ws.at(args, worker, a_at), *b = ws.at(args, worker, b_at), *c = ws.at(args, worker, y_at);
      float* line = ws.at(args, worker, line_at);
      const void* b_item = advance(args.in[1], dtype, shared_b ? 0 : item * n * k);
      if (tb) {
        simd().load(dtype, advance(b_item, dtype, column * k), b, static_cast<size_t>(width * k));
      } else {
        for (int64_t r = 0; r < k; ++r) {
          simd().load(dtype, advance(b_item, dtype, r * n + column), b + r * width, static_cast<size_t>(width));
        }
      }
      auto* packed = ws.at<std::byte>(args, worker, packed_at);
      products.at(0, panel).pack(b, tb ? k : width, tb, packed);
      for (int64_t block = 0; block < products.rows.count; ++block) {
        int64_t rows = products.rows.size(block), first = block * kMostRows;
        const void* a_item = advance(args.in[0], dtype, item * m * k);
        if (ta) {  // stored [k, m]: gather the columns first..first+rows as rows
          for (int64_t j = 0; j < k; ++j) {
            simd().load(dtype, advance(a_item, dtype, j * m + first), line, static_cast<size_t>(rows));
            for (int64_t r = 0; r < rows; ++r) a[r * k + j] = line[r];
          }
        } else {
          simd().load(dtype, advance(a_item, dtype, first * k), a, static_cast<size_t>(rows * k));
        }
        products.at(block, panel).run(a, packed, c, ws.at(args, worker, work_at));
        for (int64_t r = 0; r < rows; ++r) {
          std::byte* out = advance(args.out, dtype, (item * m + first + r) * n + column);
          simd().store(dtype, c + r * width, out, static_cast<size_t>(width));
        }
      }
    });
  };
  return step;
}

}  // namespace kinora::cpu
