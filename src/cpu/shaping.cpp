#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"

namespace kinora::cpu {
namespace {

// A copy between two strided views of the same extents, in bytes. Axes that walk on contiguously in both are merged.
struct StridedCopy {
  std::vector<int64_t> dims, from, to;
  int64_t run = 1;  // bytes that are contiguous in both

  StridedCopy(std::span<const int64_t> extents, std::vector<int64_t> source, std::vector<int64_t> target,
              size_t element) {
    auto size = static_cast<int64_t>(element);
    for (size_t i = 0; i < extents.size(); ++i) {
      if (extents[i] == 1) continue;
      int64_t f = source[i] * size, t = target[i] * size;
      if (!dims.empty() && from.back() == f * extents[i] && to.back() == t * extents[i]) {
        dims.back() *= extents[i];
        from.back() = f;
        to.back() = t;
      } else {
        dims.push_back(extents[i]);
        from.push_back(f);
        to.push_back(t);
      }
    }
    run = size;
    if (!dims.empty() && from.back() == size && to.back() == size) {
      run = dims.back() * size;
      dims.pop_back();
      from.pop_back();
      to.pop_back();
    }
  }

  int64_t runs() const {
    int64_t total = 1;
    for (int64_t extent : dims) total *= extent;
    return total;
  }

  void copy(const std::byte* source, std::byte* target, ThreadPool& pool) const {
    int64_t total = runs(), per_task = std::max<int64_t>(1, 65536 / run);
    pool.run((total + per_task - 1) / per_task, [&](int64_t task, int) {
      int64_t begin = task * per_task, end = std::min(total, begin + per_task);
      std::vector<int64_t> index(dims.size());
      int64_t f = 0, t = 0, rest = begin;
      for (size_t i = dims.size(); i-- > 0;) {
        index[i] = rest % dims[i];
        rest /= dims[i];
        f += index[i] * from[i];
        t += index[i] * to[i];
      }
      for (int64_t r = begin; r < end; ++r) {
        move(source + f, target + t);
        for (size_t i = dims.size(); i-- > 0;) {
          f += from[i];
          t += to[i];
          if (++index[i] < dims[i]) break;
          f -= from[i] * dims[i];
          t -= to[i] * dims[i];
          index[i] = 0;
        }
      }
    });
  }

 private:
  void move(const std::byte* source, std::byte* target) const {
    if (run == 4) {
      std::memcpy(target, source, 4);
    } else if (run == 2) {
      std::memcpy(target, source, 2);
    } else {
      std::memcpy(target, source, static_cast<size_t>(run));
    }
  }
};

std::vector<int64_t> contiguous(const Shape& shape) {
  std::vector<int64_t> strides(static_cast<size_t>(shape.rank()));
  int64_t stride = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[static_cast<size_t>(i)] = stride;
    stride *= shape[i];
  }
  return strides;
}

Step copy_step(StridedCopy plan, int64_t source_offset) {
  Step step;
  step.run = [plan = std::move(plan), source_offset](const StepArgs& args) {
    plan.copy(static_cast<const std::byte*>(args.in[0]) + source_offset, static_cast<std::byte*>(args.out), args.pool);
  };
  return step;
}

}  // namespace

Step make_permute(const StepSpec& spec) {
  std::vector<int64_t> source = contiguous(spec.inputs[0].shape), moved;
  for (int64_t axis : spec.node.attrs.ints("order")) moved.push_back(source[static_cast<size_t>(axis)]);
  const Shape& out = spec.output().shape;
  return copy_step(StridedCopy(out.dims(), moved, contiguous(out), dtype_size(spec.output().dtype)), 0);
}

Step make_slice(const StepSpec& spec) {
  auto axis = static_cast<size_t>(spec.node.attrs.integer("axis"));
  std::vector<int64_t> source = contiguous(spec.inputs[0].shape);
  size_t element = dtype_size(spec.output().dtype);
  int64_t offset = spec.node.attrs.integer("start") * source[axis] * static_cast<int64_t>(element);
  source[axis] *= spec.node.attrs.integer("stride");
  const Shape& out = spec.output().shape;
  return copy_step(StridedCopy(out.dims(), source, contiguous(out), element), offset);
}

Step make_broadcast(const StepSpec& spec) {
  const Shape &in = spec.inputs[0].shape, &out = spec.output().shape;
  std::vector<int64_t> own = contiguous(in), source(static_cast<size_t>(out.rank()), 0);
  int extra = out.rank() - in.rank();
  for (int i = 0; i < in.rank(); ++i) {
    if (in[i] != 1) source[static_cast<size_t>(i + extra)] = own[static_cast<size_t>(i)];
  }
  return copy_step(StridedCopy(out.dims(), source, contiguous(out), dtype_size(spec.output().dtype)), 0);
}

Step make_concat(const StepSpec& spec) {
  auto axis = static_cast<size_t>(spec.node.attrs.integer("axis"));
  size_t element = dtype_size(spec.output().dtype);
  std::vector<int64_t> target = contiguous(spec.output().shape);
  std::vector<std::pair<StridedCopy, int64_t>> parts;
  int64_t at = 0;
  for (const TensorSpec& in : spec.inputs) {
    parts.emplace_back(StridedCopy(in.shape.dims(), contiguous(in.shape), target, element),
                       at * target[axis] * static_cast<int64_t>(element));
    at += in.shape[static_cast<int>(axis)];
  }
  Step step;
  step.run = [parts](const StepArgs& args) {
    for (size_t i = 0; i < parts.size(); ++i) {
      parts[i].first.copy(static_cast<const std::byte*>(args.in[i]),
                          static_cast<std::byte*>(args.out) + parts[i].second, args.pool);
    }
  };
  return step;
}

Step make_pad(const StepSpec& spec) {
  auto axis = static_cast<size_t>(spec.node.attrs.integer("axis"));
  const Shape& in = spec.inputs[0].shape;
  size_t element = dtype_size(spec.output().dtype), bytes = spec.output().bytes();
  std::vector<int64_t> target = contiguous(spec.output().shape);
  int64_t offset = spec.node.attrs.integer("before") * target[axis] * static_cast<int64_t>(element);
  target[axis] *= spec.node.attrs.integer("interior") + 1;
  StridedCopy plan(in.dims(), contiguous(in), target, element);
  bool empty = in.numel() == 0;
  Step step;
  step.run = [=](const StepArgs& args) {
    std::memset(args.out, 0, bytes);
    if (!empty)
      plan.copy(static_cast<const std::byte*>(args.in[0]), static_cast<std::byte*>(args.out) + offset, args.pool);
  };
  return step;
}

// The last axis is not padded: its rows are what is copied.
bool supports_pad_edge(const StepSpec& spec) {
  const Shape& in = spec.inputs[0].shape;
  return in.rank() >= 2 && in.numel() > 0 && spec.output().shape[-1] == in[-1];
}

Step make_pad_edge(const StepSpec& spec) {
  const Shape in = spec.inputs[0].shape, out = spec.output().shape;
  Ints before = spec.node.attrs.ints("before");
  int rank = in.rank();
  size_t cell = static_cast<size_t>(in[-1]) * dtype_size(spec.output().dtype);
  int64_t width = in[rank - 2], out_width = out[rank - 2], left = before[static_cast<size_t>(rank - 2)];
  Step step;
  step.run = [=](const StepArgs& args) {
    args.pool.run(out.product(0, rank - 2), [&](int64_t row, int) {
      int64_t rest = row, source = 0, stride = 1;
      for (int i = rank - 3; i >= 0; --i) {
        source += std::clamp<int64_t>(rest % out[i] - before[static_cast<size_t>(i)], 0, in[i] - 1) * stride;
        stride *= in[i];
        rest /= out[i];
      }
      const auto* x = static_cast<const std::byte*>(args.in[0]) + static_cast<size_t>(source * width) * cell;
      auto* y = static_cast<std::byte*>(args.out) + static_cast<size_t>(row * out_width) * cell;
      for (int64_t i = 0; i < left; ++i) std::memcpy(y + static_cast<size_t>(i) * cell, x, cell);
      std::memcpy(y + static_cast<size_t>(left) * cell, x, static_cast<size_t>(width) * cell);
      for (int64_t i = left + width; i < out_width; ++i)
        std::memcpy(y + static_cast<size_t>(i) * cell, x + static_cast<size_t>(width - 1) * cell, cell);
    });
  };
  return step;
}

Step make_upsample2(const StepSpec& spec) {
  const Shape in = spec.inputs[0].shape;  // [batch, height, width, channels]
  auto pixel = static_cast<size_t>(in[3]) * dtype_size(spec.output().dtype);
  int64_t width = in[2], rows = in[0] * in[1];
  Step step;
  step.run = [=](const StepArgs& args) {
    args.pool.run(rows, [&](int64_t row, int) {
      const auto* x = static_cast<const std::byte*>(args.in[0]) + static_cast<size_t>(row * width) * pixel;
      std::byte* y = static_cast<std::byte*>(args.out) + static_cast<size_t>(row * width) * 4 * pixel;
      size_t line = static_cast<size_t>(width) * 2 * pixel;
      for (int64_t i = 0; i < width; ++i, x += pixel) {
        std::memcpy(y + static_cast<size_t>(2 * i) * pixel, x, pixel);
        std::memcpy(y + static_cast<size_t>(2 * i + 1) * pixel, x, pixel);
      }
      std::memcpy(y + line, y, line);
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
