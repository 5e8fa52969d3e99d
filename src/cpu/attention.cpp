#include "ops/attention.h"

#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/onednn.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kQueries = 64;  // queries of one block of scores
constexpr int64_t kBlocks = 4;    // blocks of one task, which packs k and v for itself
constexpr int64_t kTokens = 256;  // tokens summed before they are added to the linear-attention state
constexpr int64_t kChunk = 256;   // tokens of one task of the second pass

// Loads `rows` vectors of length d that lie `stride` elements apart.
void load_rows(DType dtype, const void* base, int64_t first, int64_t stride, int64_t rows, int64_t d, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    simd().load(dtype, advance(base, dtype, first + r * stride), out + r * d, static_cast<size_t>(d));
  }
}

// The same into the type that products are computed in: a plain copy, or float32.
void gather_rows(DType dtype, DType compute, const void* base, int64_t first, int64_t stride, int64_t rows, int64_t d,
                 std::byte* out) {
  if (compute == DType::f32) return load_rows(dtype, base, first, stride, rows, d, reinterpret_cast<float*>(out));
  size_t bytes = static_cast<size_t>(d) * dtype_size(dtype);
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(out + static_cast<size_t>(r) * bytes, advance(base, dtype, first + r * stride), bytes);
  }
}

// From scores to weights, row by row.
struct Softening {
  AttentionExtras extras;
  bool causal;
  int64_t window, block, keys;
  float scale, softcap;
  // Elements from one batch item, head and query to the next in the bias; 0 where one row serves all.
  int64_t bias_item = 0, bias_head = 0, bias_query = 0;

  explicit Softening(const StepSpec& spec)
      : extras(attention_extras(spec.inputs)),
        causal(spec.node.attrs.integer("causal")),
        window(spec.node.attrs.integer("window")),
        block(spec.node.attrs.integer("block")),
        keys(spec.inputs[1].shape[1]),
        scale(static_cast<float>(spec.node.attrs.real("scale"))),
        softcap(static_cast<float>(spec.node.attrs.real("softcap"))) {
    if (!extras.bias) return;
    const Shape& s = spec.inputs[extras.bias].shape;
    bias_query = s[2] > 1 ? keys : 0;
    bias_head = s[1] > 1 ? s[2] * keys : 0;
    bias_item = s[0] > 1 ? s[1] * s[2] * keys : 0;
  }

  // How many of a batch item's keys are there.
  int64_t keys_of(const StepArgs& args, int64_t item) const {
    if (!extras.lengths) return keys;
    return std::clamp<int64_t>(static_cast<const int32_t*>(args.in[extras.lengths])[item], 1, keys);
  }

  // Scores of query i and the keys before `there` to their exponentials, those of the other keys to zero; returns the
  // sum.
  float run(const StepArgs& args, float* row, int64_t item, int64_t head, int64_t i, int64_t there) const {
    auto count = static_cast<size_t>(there);
    float factor = scale;
    if (softcap > 0) {
      simd().affine(row, scale / softcap, 0, row, count);
      simd().unary(Unary::tanh, row, row, count);
      factor = softcap;
    }
    if (causal) {
      simd().affine(row, factor, 0, row, count);
      factor = 1;
      int64_t first = window > 0 ? std::max<int64_t>(0, i - window + 1) : 0;
      std::fill(row, row + std::min(first, there), -1e30f);
      int64_t end = (i / block + 1) * block;
      if (end < there) std::fill(row + end, row + there, -1e30f);
    }
    const float* bias = nullptr;
    if (extras.bias) {
      bias = static_cast<const float*>(args.in[extras.bias]) + item * bias_item + head * bias_head + i * bias_query;
    }
    std::fill(row + there, row + keys, 0.0f);
    return simd().softmax_row(row, factor, bias, count);
  }
};

}  // namespace

Step make_attention(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  DType dtype = spec.output().dtype, compute = dtype == DType::bf16 && has_native_bf16() ? DType::bf16 : DType::f32;
  int64_t batch = q[0], n = q[1], heads = q[2], d = q[3], m = k[1], kv_heads = k[2];
  Softening soften(spec);
  int64_t block = std::min(kQueries, n), blocks = (n + block - 1) / block, tail = n - (blocks - 1) * block;
  int64_t groups = (blocks + kBlocks - 1) / kBlocks;
  // Scores and results of a full block of queries and of the last one.
  std::vector<MatmulPrimitive> scores, results;
  scores.reserve(2);
  results.reserve(2);
  size_t work = 0;
  for (int64_t rows : {block, tail}) {
    scores.emplace_back(MatmulPrimitive::Shape{rows, m, d, compute}, scores.empty() ? nullptr : &scores[0]);
    results.emplace_back(MatmulPrimitive::Shape{rows, d, m, compute}, results.empty() ? nullptr : &results[0]);
    work = std::max({work, scores.back().workspace_bytes(), results.back().workspace_bytes()});
  }
  size_t element = dtype_size(compute);
  Workspace ws;
  size_t kv_at = ws.add(static_cast<size_t>(m * d) * element), k_at = ws.add(scores[0].packed_bytes());
  size_t v_at = ws.add(results[0].packed_bytes()), q_at = ws.add(static_cast<size_t>(block * d) * element);
  size_t s_at = ws.add(static_cast<size_t>(block * m) * 4), y_at = ws.add(static_cast<size_t>(block * d) * 4);
  size_t p_at = ws.add(compute == DType::f32 ? 0 : static_cast<size_t>(block * m) * element), work_at = ws.add(work);
  size_t total_at = ws.add(static_cast<size_t>(block) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    args.pool.run(batch * heads * groups, [&](int64_t task, int worker) {
      int64_t group = task % groups, b = task / groups / heads, h = task / groups % heads, kv = h / (heads / kv_heads);
      auto *kvs = ws.at<std::byte>(args, worker, kv_at), *qs = ws.at<std::byte>(args, worker, q_at);
      float *s = ws.at(args, worker, s_at), *y = ws.at(args, worker, y_at), *totals = ws.at(args, worker, total_at);
      auto *pk = ws.at<std::byte>(args, worker, k_at), *pv = ws.at<std::byte>(args, worker, v_at);
      auto *workspace = ws.at<std::byte>(args, worker, work_at), *p = ws.at<std::byte>(args, worker, p_at);
      int64_t there = soften.keys_of(args, b);
      std::memset(kvs + static_cast<size_t>(there * d) * element, 0, static_cast<size_t>((m - there) * d) * element);
      gather_rows(dtype, compute, args.in[1], (b * m * kv_heads + kv) * d, kv_heads * d, there, d, kvs);
      scores[0].pack(kvs, d, true, pk);
      gather_rows(dtype, compute, args.in[2], (b * m * kv_heads + kv) * d, kv_heads * d, there, d, kvs);
      results[0].pack(kvs, d, false, pv);
      for (int64_t i = group * kBlocks; i < std::min(blocks, (group + 1) * kBlocks); ++i) {
        size_t which = i == blocks - 1 ? 1 : 0;
        int64_t rows = which ? tail : block, first = (b * n + i * block) * heads + h;
        gather_rows(dtype, compute, args.in[0], first * d, heads * d, rows, d, qs);
        scores[which].run(qs, pk, s, workspace);
        for (int64_t r = 0; r < rows; ++r) totals[r] = soften.run(args, s + r * m, b, h, i * block + r, there);
        const void* weights = s;
        if (compute != DType::f32) {
          simd().store(compute, s, p, static_cast<size_t>(rows * m));
          weights = p;
        }
        results[which].run(weights, pv, y, workspace);
        for (int64_t r = 0; r < rows; ++r) {
          auto count = static_cast<size_t>(d);
          simd().affine(y + r * d, 1 / totals[r], 0, y + r * d, count);
          simd().store(dtype, y + r * d, advance(args.out, dtype, (first + r * heads) * d), count);
        }
      }
    });
  };
  return step;
}

bool supports_linear_attention(const StepSpec& spec) { return spec.inputs[0].shape[3] <= 256; }

// First pass: the state of each head. Second pass: the results, by chunks of tokens.
Step make_linear_attention(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  DType dtype = spec.output().dtype;
  auto eps = static_cast<float>(spec.node.attrs.real("eps"));
  int64_t batch = x[0], n = x[1], heads = x[2], d = x[3], state_size = d * (d + 1), row = heads * d;
  int64_t chunks = (n + kChunk - 1) / kChunk;
  size_t states_bytes = static_cast<size_t>(batch * heads * state_size) * 4;
  states_bytes = (states_bytes + 63) / 64 * 64;
  Workspace ws;
  size_t part_at = ws.add(static_cast<size_t>(2 * state_size) * 4);
  Step step;
  step.scratch_bytes = states_bytes + ws.total(spec.threads);
  step.run = [=](const StepArgs& all) {
    auto* states = reinterpret_cast<float*>(all.scratch);  // [batch·heads, d + 1, d], the first d rows transposed
    StepArgs args{all.in, all.out, all.scratch + states_bytes, all.pool};
    auto size = static_cast<size_t>(d), stride = static_cast<size_t>(row);
    args.pool.run(batch * heads, [&](int64_t task, int worker) {
      int64_t base = task / heads * n * row + task % heads * d;
      float *total = ws.at(args, worker, part_at), *part = total + state_size;
      std::fill(total, total + state_size, 0.0f);
      for (int64_t t = 0; t < n; t += kTokens) {
        simd().linear_state(dtype, advance(args.in[1], dtype, base + t * row),
                            advance(args.in[2], dtype, base + t * row), stride,
                            static_cast<size_t>(std::min(kTokens, n - t)), size, part);
        simd().binary(Binary::add, total, 1, part, 1, total, static_cast<size_t>(state_size));
      }
      float* state = states + task * state_size;
      for (int64_t i = 0; i < d; ++i) {
        for (int64_t j = 0; j < d; ++j) state[j * d + i] = total[i * d + j];
      }
      std::copy(total + d * d, total + state_size, state + d * d);
    });
    args.pool.run(batch * heads * chunks, [&](int64_t task, int) {
      int64_t item = task / chunks, begin = task % chunks * kChunk;
      int64_t base = item / heads * n * row + item % heads * d + begin * row;
      simd().linear_apply(dtype, advance(args.in[0], dtype, base), advance(args.out, dtype, base), stride,
                          static_cast<size_t>(std::min(n - begin, kChunk)), size, states + item * state_size, eps);
    });
  };
  return step;
}

Step make_rope(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  DType dtype = spec.output().dtype;
  int64_t rows = x[0] * x[1], tokens = x[1], heads = x[2], d = x[3];
  bool pairs = spec.node.attrs.integer("interleaved");
  Workspace ws;
  size_t x_at = ws.add(static_cast<size_t>(d) * 4), y_at = ws.add(static_cast<size_t>(d) * 4);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    args.pool.run(rows, [&](int64_t r, int worker) {
      const float* cos = static_cast<const float*>(args.in[1]) + r % tokens * d;
      const float* sin = static_cast<const float*>(args.in[2]) + r % tokens * d;
      float *v = ws.at(args, worker, x_at), *y = ws.at(args, worker, y_at);
      for (int64_t h = 0; h < heads; ++h) {
        int64_t at = (r * heads + h) * d;
        simd().load(dtype, advance(args.in[0], dtype, at), v, static_cast<size_t>(d));
        for (int64_t i = 0; pairs && i < d; i += 2) {
          y[i] = v[i] * cos[i] - v[i + 1] * sin[i];
          y[i + 1] = v[i + 1] * cos[i + 1] + v[i] * sin[i + 1];
        }
        for (int64_t i = 0; !pairs && i < d / 2; ++i) {
          y[i] = v[i] * cos[i] - v[i + d / 2] * sin[i];
          y[i + d / 2] = v[i + d / 2] * cos[i + d / 2] + v[i] * sin[i + d / 2];
        }
        simd().store(dtype, y, advance(args.out, dtype, at), static_cast<size_t>(d));
      }
    });
  };
  return step;
}

}  // namespace kinora::cpu
