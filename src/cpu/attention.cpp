#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/onednn.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kQueries = 128;  // queries of one task
constexpr int64_t kKeys = 1024;    // keys whose scores are held at a time
constexpr int64_t kTokens = 256;   // tokens summed before they are added to the linear-attention state
constexpr int64_t kChunk = 1024;   // tokens of one task of the second pass

// Loads `rows` vectors of length d that lie `stride` elements apart.
void load_rows(DType dtype, const void* base, int64_t first, int64_t stride, int64_t rows, int64_t d, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    simd().load(dtype, advance(base, dtype, first + r * stride), out + r * d, static_cast<size_t>(d));
  }
}

}  // namespace

// One task is a block of queries of one head. It walks over tiles of keys and keeps, for each query, the largest score,
// the sum of exponentials and the weighted sum of values so far ("Online normalizer calculation for softmax",
// arXiv:1805.02867), so memory does not grow with queries times keys.
Step make_attention(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  const Attrs& attrs = spec.node.attrs;
  DType dtype = spec.output().dtype;
  int64_t batch = q[0], n = q[1], heads = q[2], d = q[3], m = k[1], kv_heads = k[2];
  int64_t window = attrs.integer("window"), group = attrs.integer("block");
  bool causal = attrs.integer("causal"), biased = spec.inputs.size() == 4;
  auto scale = static_cast<float>(attrs.real("scale")), softcap = static_cast<float>(attrs.real("softcap"));
  int64_t block = std::min(kQueries, n), blocks = (n + block - 1) / block;
  int64_t tile = std::min(kKeys, m), tiles = (m + tile - 1) / tile;
  // By whether the block of queries and the tile of keys are the last ones, which may be shorter.
  std::vector<MatmulPrimitive> scores, results;
  size_t packed_k = 0, packed_v = 0, work = 0;
  for (int64_t rows : {block, n - (blocks - 1) * block}) {
    for (int64_t keys : {tile, m - (tiles - 1) * tile}) {
      scores.emplace_back(MatmulPrimitive::Shape{rows, keys, d, d, keys, DType::f32});
      results.emplace_back(MatmulPrimitive::Shape{rows, d, keys, keys, d, DType::f32});
      packed_k = std::max(packed_k, scores.back().packed_bytes());
      packed_v = std::max(packed_v, results.back().packed_bytes());
      work = std::max({work, scores.back().workspace_bytes(), results.back().workspace_bytes()});
    }
  }
  Workspace ws;
  size_t kv_at = ws.add(static_cast<size_t>(tile * d) * 4), k_at = ws.add(packed_k), v_at = ws.add(packed_v);
  size_t q_at = ws.add(static_cast<size_t>(block * d) * 4), s_at = ws.add(static_cast<size_t>(block * tile) * 4);
  size_t y_at = ws.add(static_cast<size_t>(block * d) * 4), sum_at = ws.add(static_cast<size_t>(block * d) * 4);
  size_t state_at = ws.add(static_cast<size_t>(2 * block) * 4), work_at = ws.add(work);
  Step step;
  step.scratch_bytes = ws.total(spec.threads);
  step.run = [=](const StepArgs& args) {
    const float* bias = biased ? static_cast<const float*>(args.in[3]) : nullptr;
    // The keys [first, end) that query i sees.
    auto first_key = [&](int64_t i) { return causal && window > 0 ? std::max<int64_t>(0, i - window + 1) : 0; };
    auto end_key = [&](int64_t i) { return causal ? std::min(m, (i / group + 1) * group) : m; };
    auto soften = [&](float* row, int64_t b, int64_t i, int64_t from, int64_t keys) {
      auto count = static_cast<size_t>(keys);
      simd().affine(row, softcap > 0 ? scale / softcap : scale, 0, row, count);
      if (softcap > 0) {
        simd().unary(Unary::tanh, row, row, count);
        simd().affine(row, softcap, 0, row, count);
      }
      int64_t hidden = std::clamp<int64_t>(first_key(i) - from, 0, keys);
      int64_t seen = std::clamp<int64_t>(end_key(i) - from, 0, keys);
      std::fill(row, row + hidden, -1e30f);
      std::fill(row + seen, row + keys, -1e30f);
      if (bias) simd().binary(Binary::add, row, 1, bias + b * m + from, 1, row, count);
    };
    args.pool.run(batch * heads * blocks, [&](int64_t task, int worker) {
      int64_t i = task % blocks, b = task / blocks / heads, h = task / blocks % heads, kv = h / (heads / kv_heads);
      float *line = ws.at(args, worker, kv_at), *qs = ws.at(args, worker, q_at), *s = ws.at(args, worker, s_at);
      float *y = ws.at(args, worker, y_at), *total = ws.at(args, worker, sum_at);
      float *best = ws.at(args, worker, state_at), *weight = best + block;
      auto *pk = ws.at<std::byte>(args, worker, k_at), *pv = ws.at<std::byte>(args, worker, v_at);
      auto* workspace = ws.at<std::byte>(args, worker, work_at);
      int64_t from = i * block, rows = std::min(block, n - from), at = (b * n + from) * heads + h;
      load_rows(dtype, args.in[0], at * d, heads * d, rows, d, qs);
      std::fill(total, total + rows * d, 0.0f);
      std::fill(best, best + rows, -std::numeric_limits<float>::infinity());
      std::fill(weight, weight + rows, 0.0f);
      // Every query sees a key of the first tile taken, or its scores there are all -1e30 and vanish with the next.
      int64_t begin = first_key(from) / tile, end = (std::max<int64_t>(1, end_key(from + rows - 1)) + tile - 1) / tile;
      for (int64_t t = begin; t < end; ++t) {
        int64_t first = t * tile, keys = std::min(tile, m - first);
        size_t which = (i == blocks - 1 ? 2u : 0u) + (t == tiles - 1 ? 1u : 0u);
        int64_t kv_row = ((b * m + first) * kv_heads + kv) * d;
        load_rows(dtype, args.in[1], kv_row, kv_heads * d, keys, d, line);
        scores[which].pack(line, d, true, pk);
        scores[which].run(qs, pk, s, workspace);
        for (int64_t r = 0; r < rows; ++r) {
          float* row = s + r * keys;
          soften(row, b, from + r, first, keys);
          float highest = std::max(best[r], simd().max(row, static_cast<size_t>(keys)));
          float keep = std::exp(best[r] - highest);
          if (t > begin && keep != 1) simd().affine(total + r * d, keep, 0, total + r * d, static_cast<size_t>(d));
          weight[r] = weight[r] * keep + simd().exp_sum(row, highest, static_cast<size_t>(keys));
          best[r] = highest;
        }
        load_rows(dtype, args.in[2], kv_row, kv_heads * d, keys, d, line);
        results[which].pack(line, d, false, pv);
        results[which].run(s, pv, y, workspace);
        simd().binary(Binary::add, total, 1, y, 1, total, static_cast<size_t>(rows * d));
      }
      for (int64_t r = 0; r < rows; ++r) {
        simd().affine(total + r * d, 1 / weight[r], 0, total + r * d, static_cast<size_t>(d));
        simd().store(dtype, total + r * d, advance(args.out, dtype, (at + r * heads) * d), static_cast<size_t>(d));
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
