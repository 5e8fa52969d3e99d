#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/onednn.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kQueries = 64;  // queries of one block of scores
constexpr int64_t kTokens = 256;  // tokens summed before they are added to the linear-attention state
constexpr int64_t kChunk = 1024;  // tokens of one task of the second pass

// Loads `rows` vectors of length d that lie `stride` elements apart.
void load_rows(DType dtype, const void* base, int64_t first, int64_t stride, int64_t rows, int64_t d, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    simd().load(dtype, advance(base, dtype, first + r * stride), out + r * d, static_cast<size_t>(d));
  }
}

}  // namespace

Step make_attention(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  const Attrs& attrs = spec.node.attrs;
  DType dtype = spec.output().dtype;
  int64_t batch = q[0], n = q[1], heads = q[2], d = q[3], m = k[1], kv_heads = k[2], window = attrs.integer("window");
  bool causal = attrs.integer("causal"), biased = spec.inputs.size() == 4;
  int64_t group = attrs.integer("block");
  auto scale = static_cast<float>(attrs.real("scale")), softcap = static_cast<float>(attrs.real("softcap"));
  int64_t block = std::min(kQueries, n), blocks = (n + block - 1) / block, tail = n - (blocks - 1) * block;
  // Scores and results of a full block of queries and of the last one.
  std::vector<MatmulPrimitive> scores, results;
  size_t packed_k = 0, packed_v = 0, work = 0;
  for (int64_t rows : {block, tail}) {
    scores.emplace_back(MatmulPrimitive::Shape{rows, m, d, d, m, DType::f32});
    results.emplace_back(MatmulPrimitive::Shape{rows, d, m, m, d, DType::f32});
    packed_k = std::max(packed_k, scores.back().packed_bytes());
    packed_v = std::max(packed_v, results.back().packed_bytes());
    work = std::max({work, scores.back().workspace_bytes(), results.back().workspace_bytes()});
  }
  Workspace ws;
  size_t kv_at = ws.add(static_cast<size_t>(m * d) * 4), k_at = ws.add(packed_k), v_at = ws.add(packed_v);
  size_t q_at = ws.add(static_cast<size_t>(block * d) * 4), s_at = ws.add(static_cast<size_t>(block * m) * 4);
  size_t y_at = ws.add(static_cast<size_t>(block * d) * 4), work_at = ws.add(work);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    const float* bias = biased ? static_cast<const float*>(args.in[3]) : nullptr;
    auto soften = [&](float* row, int64_t b, int64_t i) {
      auto count = static_cast<size_t>(m);
      simd().affine(row, softcap > 0 ? scale / softcap : scale, 0, row, count);
      if (softcap > 0) {
        simd().unary(Unary::tanh, row, row, count);
        simd().affine(row, softcap, 0, row, count);
      }
      if (causal) {
        int64_t first = window > 0 ? std::max<int64_t>(0, i - window + 1) : 0;
        std::fill(row, row + std::min(first, m), -1e30f);
        int64_t end = (i / group + 1) * group;
        if (end < m) std::fill(row + end, row + m, -1e30f);
      }
      if (bias) simd().binary(Binary::add, row, 1, bias + b * m, 1, row, count);
      float total = simd().exp_sum(row, simd().max(row, count), count);
      simd().affine(row, 1 / total, 0, row, count);
    };
    args.pool.run(batch * heads, [&](int64_t task, int worker) {
      int64_t b = task / heads, h = task % heads, kv = h / (heads / kv_heads);
      float *line = ws.at(args, worker, kv_at), *qs = ws.at(args, worker, q_at), *s = ws.at(args, worker, s_at);
      float* y = ws.at(args, worker, y_at);
      auto *pk = ws.at<std::byte>(args, worker, k_at), *pv = ws.at<std::byte>(args, worker, v_at);
      auto* workspace = ws.at<std::byte>(args, worker, work_at);
      for (int64_t i = 0; i < blocks; ++i) {
        size_t which = i == blocks - 1 ? 1 : 0;
        int64_t rows = which ? tail : block;
        if (i == 0 || which) {  // the packed layout may depend on the number of queries
          load_rows(dtype, args.in[1], (b * m * kv_heads + kv) * d, kv_heads * d, m, d, line);
          scores[which].pack(line, d, true, pk);
          load_rows(dtype, args.in[2], (b * m * kv_heads + kv) * d, kv_heads * d, m, d, line);
          results[which].pack(line, d, false, pv);
        }
        int64_t first = (b * n + i * block) * heads + h;
        load_rows(dtype, args.in[0], first * d, heads * d, rows, d, qs);
        scores[which].run(qs, pk, s, workspace);
        for (int64_t r = 0; r < rows; ++r) soften(s + r * m, b, i * block + r);
        results[which].run(s, pv, y, workspace);
        for (int64_t r = 0; r < rows; ++r) {
          simd().store(dtype, y + r * d, advance(args.out, dtype, (first + r * heads) * d), static_cast<size_t>(d));
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
  size_t part_at = ws.add(static_cast<size_t>(2 * state_size) * 4), k_at = ws.add(static_cast<size_t>(kTokens * d) * 4);
  size_t v_at = ws.add(static_cast<size_t>(kTokens * d) * 4);
  Step step;
  step.scratch_bytes = states_bytes + ws.total(spec.threads);
  step.run = [=](const StepArgs& all) {
    auto* states = reinterpret_cast<float*>(all.scratch);  // transposed: [batch·heads, d, d + 1]
    StepArgs args{all.in, all.out, all.scratch + states_bytes, all.pool};
    args.pool.run(batch * heads, [&](int64_t task, int worker) {
      int64_t base = task / heads * n * row + task % heads * d;
      float *total = ws.at(args, worker, part_at), *part = total + state_size;
      float *k = ws.at(args, worker, k_at), *v = ws.at(args, worker, v_at);
      std::fill(total, total + state_size, 0.0f);
      for (int64_t t = 0; t < n; t += kTokens) {
        int64_t count = std::min(kTokens, n - t);
        load_rows(dtype, args.in[1], base + t * row, row, count, d, k);
        load_rows(dtype, args.in[2], base + t * row, row, count, d, v);
        std::fill(part, part + state_size, 0.0f);
        simd().linear_state(k, v, static_cast<size_t>(d), static_cast<size_t>(count), static_cast<size_t>(d), part);
        simd().binary(Binary::add, total, 1, part, 1, total, static_cast<size_t>(state_size));
      }
      float* state = states + task * state_size;
      for (int64_t i = 0; i <= d; ++i) {
        for (int64_t j = 0; j < d; ++j) state[j * (d + 1) + i] = total[i * d + j];
      }
    });
    args.pool.run(batch * heads * chunks, [&](int64_t task, int worker) {
      int64_t item = task / chunks, begin = task % chunks * kChunk;
      int64_t base = item / heads * n * row + item % heads * d;
      float *q = ws.at(args, worker, k_at), *y = ws.at(args, worker, v_at);
      for (int64_t t = begin; t < std::min(n, begin + kChunk); t += kTokens) {
        int64_t count = std::min({kTokens, n - t, begin + kChunk - t});
        load_rows(dtype, args.in[0], base + t * row, row, count, d, q);
        simd().linear_apply(q, y, static_cast<size_t>(d), static_cast<size_t>(d), static_cast<size_t>(count),
                            static_cast<size_t>(d), states + item * state_size, eps);
        for (int64_t r = 0; r < count; ++r) {
          simd().store(dtype, y + r * d, advance(args.out, dtype, base + (t + r) * row), static_cast<size_t>(d));
        }
      }
    });
  };
  return step;
}

Step make_rope(const StepSpec& spec) {
  const Shape& x = spec.inputs[0].shape;
  DType dtype = spec.output().dtype;
  int64_t rows = x[0] * x[1], tokens = x[1], heads = x[2], d = x[3];
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
        for (int64_t i = 0; i < d / 2; ++i) {
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
