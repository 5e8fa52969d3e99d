#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/onednn.h"

namespace kinora::cpu {
namespace {

constexpr int64_t kQueries = 128;  // queries of one task
constexpr int64_t kKeys = 1024;    // keys whose scores are held at a time

void load_rows(DType dtype, const void* base, int64_t first, int64_t stride, int64_t rows, int64_t d, float* out) {
  for (int64_t r = 0; r < rows; ++r) {
    simd().load(dtype, advance(base, dtype, first + r * stride), out + r * d, static_cast<size_t>(d));
  }
}

}  // namespace

bool supports_block_attention(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  return attrs.integer("causal") && attrs.integer("block") > 1 && attrs.real("softcap") == 0 && spec.inputs.size() == 3;
}

// Attention among the frames of a film: long sequences, few heads. One task is a block of queries of one head. It walks
// over tiles of keys and keeps, for each query, the largest score, the sum of exponentials and the weighted sum of
// values so far ("Online normalizer calculation for softmax", arXiv:1805.02867), so memory does not grow with queries
// times keys.
Step make_block_attention(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  const Attrs& attrs = spec.node.attrs;
  DType dtype = spec.output().dtype;
  int64_t batch = q[0], n = q[1], heads = q[2], d = q[3], m = k[1], kv_heads = k[2];
  int64_t group = attrs.integer("block");
  auto scale = static_cast<float>(attrs.real("scale"));
  int64_t block = std::min(kQueries, n), blocks = (n + block - 1) / block;
  int64_t tile = std::min(kKeys, m), tiles = (m + tile - 1) / tile;
  // By whether the block of queries and the tile of keys are the last ones, which may be shorter.
  std::vector<MatmulPrimitive> scores, results;
  size_t packed_k = 0, packed_v = 0, work = 0;
  for (int64_t rows : {block, n - (blocks - 1) * block}) {
    for (int64_t keys : {tile, m - (tiles - 1) * tile}) {
      scores.emplace_back(MatmulPrimitive::Shape{.m = rows, .n = keys, .k = d});
      results.emplace_back(MatmulPrimitive::Shape{.m = rows, .n = d, .k = keys});
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
    // Query i sees the keys before this one.
    auto end_key = [=](int64_t i) { return std::min(m, (i / group + 1) * group); };
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
      int64_t end = (end_key(from + rows - 1) + tile - 1) / tile;
      for (int64_t t = 0; t < end; ++t) {
        int64_t first = t * tile, keys = std::min(tile, m - first);
        size_t which = (i == blocks - 1 ? 2u : 0u) + (t == tiles - 1 ? 1u : 0u);
        int64_t kv_row = ((b * m + first) * kv_heads + kv) * d;
        load_rows(dtype, args.in[1], kv_row, kv_heads * d, keys, d, line);
        scores[which].pack(line, d, true, pk);
        scores[which].run(qs, pk, s, workspace);
        for (int64_t r = 0; r < rows; ++r) {
          float* row = s + r * keys;
          simd().affine(row, scale, 0, row, static_cast<size_t>(keys));
          std::fill(row + std::clamp<int64_t>(end_key(from + r) - first, 0, keys), row + keys, -1e30f);
          float highest = std::max(best[r], simd().max(row, static_cast<size_t>(keys)));
          float keep = std::exp(best[r] - highest);
          if (t > 0 && keep != 1) simd().affine(total + r * d, keep, 0, total + r * d, static_cast<size_t>(d));
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

}  // namespace kinora::cpu
