// Products. The work is cut by shape alone into tasks of (panel of output columns) x (group of rows): each task packs
// its panel of the weight once, in the compute type, and runs one-threaded oneDNN products over its rows. So a weight
// is never copied as a whole, and the bits depend neither on the number of threads nor on the batch.
#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/onednn.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kPanel = 128;     // columns of a panel
constexpr int64_t kRows = 256;      // rows of one product
constexpr int64_t kManyTasks = 64;  // rows are grouped so that there are at least this many tasks when possible
constexpr int64_t kFewRows = 8;     // up to here dot products beat packing

Unary activation_of(const std::string& name) {
  if (name == "silu") return Unary::silu;
  if (name == "relu") return Unary::relu;
  if (name == "gelu_tanh") return Unary::gelu_tanh;
  if (name == "gelu") return Unary::gelu;
  if (name == "quick_gelu") return Unary::quick_gelu;
  fail(ErrorKind::internal, "linear: unknown activation " + name);
}

struct Epilogue {
  bool bias = false, act = false;
  DType bias_type = DType::f32;
  Unary unary = Unary::silu;

  void apply(const StepArgs& args, float* row, int64_t column, size_t n) const {
    if (bias) {
      float values[kPanel];
      simd().load(bias_type, advance(args.in[2], bias_type, column), values, n);
      simd().binary(Binary::add, row, 1, values, 1, row, n);
    }
    if (act) simd().unary(unary, row, row, n);
  }
};

Epilogue make_epilogue(const StepSpec& spec) {
  Epilogue e;
  e.bias = spec.inputs.size() == 3;
  if (e.bias) e.bias_type = spec.inputs[2].dtype;
  const std::string& act = spec.node.attrs.text("act");
  e.act = act != "none";
  if (e.act) e.unary = activation_of(act);
  return e;
}

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
  size_t packed = 0, workspace = 0;

  PanelProducts(int64_t m, int64_t n, int64_t k, int64_t lda, int64_t ldc, DType dtype)
      : panels(n, kPanel), rows(m, kRows) {
    for (int64_t r : {rows.full, rows.last}) {
      for (int64_t p : {panels.full, panels.last}) {
        primitives.emplace_back(MatmulPrimitive::Shape{r, p, k, lda, ldc > 0 ? ldc : p, dtype});
        packed = std::max(packed, primitives.back().packed_bytes());
        workspace = std::max(workspace, primitives.back().workspace_bytes());
      }
    }
  }
  const MatmulPrimitive& at(int64_t row_block, int64_t panel) const {
    return primitives[(row_block == rows.count - 1 ? 2u : 0u) + (panel == panels.count - 1 ? 1u : 0u)];
  }
};

// Row blocks that one task handles, so that tasks are neither few nor needlessly small.
int64_t blocks_per_task(int64_t items, const PanelProducts& p) {
  int64_t per = p.rows.count;
  while (per > 1 && items * p.panels.count * ((p.rows.count + per - 1) / per) < kManyTasks) per = (per + 1) / 2;
  return per;
}

Step few_rows(const StepSpec& spec, int64_t m, int64_t n, int64_t k) {
  DType xt = spec.inputs[0].dtype, wt = spec.inputs[1].dtype;
  Epilogue epilogue = make_epilogue(spec);
  Workspace ws;
  size_t w_row = ws.add(static_cast<size_t>(k) * 4), x_rows = ws.add(static_cast<size_t>(m * k) * 4),
         y_rows = ws.add(static_cast<size_t>(m * kPanel) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    args.pool.run((n + kPanel - 1) / kPanel, [&](int64_t panel, int worker) {
      float *w = ws.at(args, worker, w_row), *x = ws.at(args, worker, x_rows), *y = ws.at(args, worker, y_rows);
      simd().load(xt, args.in[0], x, static_cast<size_t>(m * k));
      int64_t begin = panel * kPanel, width = std::min(kPanel, n - begin);
      for (int64_t c = 0; c < width; ++c) {
        simd().load(wt, advance(args.in[1], wt, (begin + c) * k), w, static_cast<size_t>(k));
        for (int64_t r = 0; r < m; ++r) y[r * kPanel + c] = simd().dot(x + r * k, w, static_cast<size_t>(k));
      }
      for (int64_t r = 0; r < m; ++r) {
        epilogue.apply(args, y + r * kPanel, begin, static_cast<size_t>(width));
        simd().store(xt, y + r * kPanel, advance(args.out, xt, r * n + begin), static_cast<size_t>(width));
      }
    });
  };
  return step;
}

}  // namespace

Step make_linear(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  int64_t n = spec.inputs[1].shape[0], k = spec.inputs[1].shape[1];
  int64_t items = x.rank() > 2 ? x[0] : 1, total = x.numel() / std::max<int64_t>(k, 1),
          m = total / std::max<int64_t>(items, 1);
  if (m <= kFewRows) return few_rows(spec, total, n, k);

  DType xt = spec.inputs[0].dtype, wt = spec.inputs[1].dtype;
  DType compute = xt == DType::bf16 && has_native_bf16() ? DType::bf16 : DType::f32;
  bool convert_x = xt != compute, convert_w = wt != compute, direct = xt == DType::f32;
  PanelProducts products(m, n, k, k, direct ? n : 0, compute);
  Epilogue epilogue = make_epilogue(spec);
  int64_t per_task = blocks_per_task(items, products);
  int64_t groups = (products.rows.count + per_task - 1) / per_task;

  Workspace ws;
  size_t element = dtype_size(compute);
  size_t panel_at = ws.add(convert_w ? static_cast<size_t>(kPanel * k) * element : 0),
         packed_at = ws.add(products.packed);
  size_t row_at = ws.add(convert_w || convert_x ? static_cast<size_t>(k) * 4 : 0);
  size_t x_at = ws.add(convert_x ? static_cast<size_t>(products.rows.full * k) * element : 0);
  size_t y_at = ws.add(direct ? 0 : static_cast<size_t>(kRows * kPanel) * 4), work_at = ws.add(products.workspace);
  // Copies `rows` rows of k in the compute type.
  auto convert = [=](const void* source, DType type, int64_t rows, std::byte* target, float* row) {
    for (int64_t r = 0; r < rows; ++r) {
      simd().load(type, advance(source, type, r * k), row, static_cast<size_t>(k));
      simd().store(compute, row, advance(target, compute, r * k), static_cast<size_t>(k));
    }
  };
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    args.pool.run(items * groups * products.panels.count, [&](int64_t task, int worker) {
      int64_t panel = task % products.panels.count, group = task / products.panels.count % groups;
      int64_t item = task / products.panels.count / groups;
      int64_t width = products.panels.size(panel), column = panel * kPanel;
      auto* packed = ws.at<std::byte>(args, worker, packed_at);
      float* row = ws.at(args, worker, row_at);
      const void* w = advance(args.in[1], wt, column * k);
      if (convert_w) {
        auto* converted = ws.at<std::byte>(args, worker, panel_at);
        convert(w, wt, width, converted, row);
        w = converted;
      }
      products.at(0, panel).pack(w, k, true, packed);
      for (int64_t block = group * per_task; block < std::min(products.rows.count, (group + 1) * per_task); ++block) {
        int64_t rows = products.rows.size(block), first = item * m + block * kRows;
        const void* a = advance(args.in[0], xt, first * k);
        if (convert_x) {
          auto* converted = ws.at<std::byte>(args, worker, x_at);
          convert(a, xt, rows, converted, row);
          a = converted;
        }
        std::byte* out = advance(args.out, xt, first * n + column);
        float* c = direct ? reinterpret_cast<float*>(out) : ws.at(args, worker, y_at);
        int64_t ldc = direct ? n : width;
        products.at(block, panel).run(a, packed, c, ws.at(args, worker, work_at));
        for (int64_t r = 0; r < rows; ++r) {
          epilogue.apply(args, c + r * ldc, column, static_cast<size_t>(width));
          if (!direct) simd().store(xt, c + r * ldc, advance(out, xt, r * n), static_cast<size_t>(width));
        }
      }
    });
  };
  return step;
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
  PanelProducts products(m, n, k, k, 0, DType::f32);
  Workspace ws;
  size_t a_at = ws.add(static_cast<size_t>(products.rows.full * k) * 4),
         b_at = ws.add(static_cast<size_t>(kPanel * k) * 4);
  size_t packed_at = ws.add(products.packed), y_at = ws.add(static_cast<size_t>(kRows * kPanel) * 4);
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
        int64_t rows = products.rows.size(block), first = block * kRows;
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

Step make_gather(const StepSpec& spec) {
  DType from = spec.inputs[0].dtype, to = spec.output().dtype;
  int64_t vocabulary = spec.inputs[0].shape[0], width = spec.inputs[0].shape[1], count = spec.inputs[1].shape.numel();
  Workspace ws;
  size_t row_at = ws.add(static_cast<size_t>(width) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    const auto* ids = static_cast<const int32_t*>(args.in[1]);
    float* row = ws.at(args, 0, row_at);
    for (int64_t i = 0; i < count; ++i) {
      if (ids[i] < 0 || ids[i] >= vocabulary) {
        fail(ErrorKind::input,
             "token id " + std::to_string(ids[i]) + " is outside the vocabulary of " + std::to_string(vocabulary));
      }
      simd().load(from, advance(args.in[0], from, ids[i] * width), row, static_cast<size_t>(width));
      simd().store(to, row, advance(args.out, to, i * width), static_cast<size_t>(width));
    }
  };
  return step;
}

Step make_scatter_rows(const StepSpec& spec) {
  DType dtype = spec.output().dtype;
  int64_t rows = spec.output().shape[0], width = spec.output().shape[1], count = spec.inputs[1].shape.numel();
  Workspace ws;
  size_t row_at = ws.add(static_cast<size_t>(width) * 4), sum_at = ws.add(static_cast<size_t>(width) * 4);
  size_t bytes = spec.output().bytes();
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    std::memset(args.out, 0, bytes);
    const auto* ids = static_cast<const int32_t*>(args.in[1]);
    float *row = ws.at(args, 0, row_at), *total = ws.at(args, 0, sum_at);
    auto n = static_cast<size_t>(width);
    for (int64_t i = 0; i < count; ++i) {
      if (ids[i] < 0 || ids[i] >= rows) fail(ErrorKind::input, "row " + std::to_string(ids[i]) + " is out of range");
      std::byte* out = advance(args.out, dtype, ids[i] * width);
      simd().load(dtype, advance(args.in[0], dtype, i * width), row, n);
      simd().load(dtype, out, total, n);
      simd().binary(Binary::add, total, 1, row, 1, total, n);
      simd().store(dtype, total, out, n);
    }
  };
  return step;
}

}  // namespace kinora::cpu
