#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

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

// Attention among the frames of a film: long sequences, few heads. One task is a block of queries of one head. It walks
// over tiles of keys and keeps, for each query, the largest score, the sum of exponentials and the weighted sum of
// values so far ("Online normalizer calculation for softmax", arXiv:1805.02867), so memory does not grow with queries
// times keys.
class BlockAttention {
 public:
  explicit BlockAttention(const StepSpec& spec)
      : dtype_(spec.output().dtype),
        group_(spec.node.attrs.integer("block")),
        scale_(static_cast<float>(spec.node.attrs.real("scale"))) {
    const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
    batch_ = q[0], n_ = q[1], heads_ = q[2], d_ = q[3], m_ = k[1], kv_heads_ = k[2];
    block_ = std::min(kQueries, n_);
    blocks_ = (n_ + block_ - 1) / block_;
    tile_ = std::min(kKeys, m_);
    tiles_ = (m_ + tile_ - 1) / tile_;
    make_products();
  }

  size_t scratch_bytes(int threads) const { return ws_.total(threads); }

  void run(const StepArgs& args) const {
    args.pool.run(batch_ * heads_ * blocks_, [&](int64_t number, int worker) {
      int64_t b = number / blocks_ / heads_, h = number / blocks_ % heads_, kv = h / (heads_ / kv_heads_);
      int64_t from = number % blocks_ * block_, rows = std::min(block_, n_ - from);
      attend({args, worker, from, rows, (b * n_ + from) * heads_ + h, b * m_ * kv_heads_ + kv});
    });
  }

 private:
  struct Task {
    const StepArgs& args;
    int worker;
    int64_t from, rows;     // queries
    int64_t q_row, kv_row;  // where the first of them, and the first key and value, stand in their tensors
  };

  void make_products() {
    size_t packed_k = 0, packed_v = 0, work = 0;
    for (int64_t rows : {block_, n_ - (blocks_ - 1) * block_}) {
      for (int64_t keys : {tile_, m_ - (tiles_ - 1) * tile_}) {
        scores_.emplace_back(MatmulPrimitive::Shape{.m = rows, .n = keys, .k = d_});
        results_.emplace_back(MatmulPrimitive::Shape{.m = rows, .n = d_, .k = keys});
        packed_k = std::max(packed_k, scores_.back().packed_bytes());
        packed_v = std::max(packed_v, results_.back().packed_bytes());
        work = std::max({work, scores_.back().workspace_bytes(), results_.back().workspace_bytes()});
      }
    }
    lay_out_scratch(packed_k, packed_v, work);
  }

  void lay_out_scratch(size_t packed_k, size_t packed_v, size_t work) {
    auto floats = [&](int64_t count) { return ws_.add(static_cast<size_t>(count) * 4); };
    line_at_ = floats(tile_ * d_);
    k_at_ = ws_.add(packed_k);
    v_at_ = ws_.add(packed_v);
    q_at_ = floats(block_ * d_);
    scores_at_ = floats(block_ * tile_);
    values_at_ = floats(block_ * d_);
    total_at_ = floats(block_ * d_);
    best_at_ = floats(block_);
    weight_at_ = floats(block_);
    work_at_ = ws_.add(work);
  }

  // Query i sees the keys before this one.
  int64_t end_key(int64_t i) const { return std::min(m_, (i / group_ + 1) * group_); }

  void attend(const Task& t) const {
    float *total = scratch(t, total_at_), *best = scratch(t, best_at_), *weight = scratch(t, weight_at_);
    load_rows(dtype_, t.args.in[0], t.q_row * d_, heads_ * d_, t.rows, d_, scratch(t, q_at_));
    std::fill(total, total + t.rows * d_, 0.0f);
    std::fill(best, best + t.rows, -std::numeric_limits<float>::infinity());
    std::fill(weight, weight + t.rows, 0.0f);
    int64_t end = (end_key(t.from + t.rows - 1) + tile_ - 1) / tile_;
    for (int64_t tile = 0; tile < end; ++tile) add_tile(t, tile);
    for (int64_t r = 0; r < t.rows; ++r) {
      auto count = static_cast<size_t>(d_);
      simd().affine(total + r * d_, 1 / weight[r], 0, total + r * d_, count);
      simd().store(dtype_, total + r * d_, advance(t.args.out, dtype_, (t.q_row + r * heads_) * d_), count);
    }
  }

  void add_tile(const Task& t, int64_t tile) const {
    int64_t first = tile * tile_, keys = std::min(tile_, m_ - first);
    int64_t at = (t.kv_row + first * kv_heads_) * d_;
    size_t which = (t.from + block_ >= n_ ? 2u : 0u) + (tile == tiles_ - 1 ? 1u : 0u);
    float *line = scratch(t, line_at_), *scores = scratch(t, scores_at_), *values = scratch(t, values_at_);
    auto *packed_k = scratch<std::byte>(t, k_at_), *packed_v = scratch<std::byte>(t, v_at_);
    auto* workspace = scratch<std::byte>(t, work_at_);
    load_rows(dtype_, t.args.in[1], at, kv_heads_ * d_, keys, d_, line);
    scores_[which].pack(line, d_, true, packed_k);
    scores_[which].run(scratch(t, q_at_), packed_k, scores, workspace);
    soften(t, first, keys);
    load_rows(dtype_, t.args.in[2], at, kv_heads_ * d_, keys, d_, line);
    results_[which].pack(line, d_, false, packed_v);
    results_[which].run(scores, packed_v, values, workspace);
    float* total = scratch(t, total_at_);
    simd().binary(Binary::add, total, 1, values, 1, total, static_cast<size_t>(t.rows * d_));
  }

  // The scores of keys [first, first + keys) to their exponentials, and what was before to the largest score so far.
  void soften(const Task& t, int64_t first, int64_t keys) const {
    float *total = scratch(t, total_at_), *best = scratch(t, best_at_), *weight = scratch(t, weight_at_);
    auto count = static_cast<size_t>(keys);
    for (int64_t r = 0; r < t.rows; ++r) {
      float* row = scratch(t, scores_at_) + r * keys;
      simd().affine(row, scale_, 0, row, count);
      std::fill(row + std::clamp<int64_t>(end_key(t.from + r) - first, 0, keys), row + keys, -1e30f);
      float highest = std::max(best[r], simd().max(row, count));
      float keep = std::exp(best[r] - highest);
      if (first > 0 && keep != 1) simd().affine(total + r * d_, keep, 0, total + r * d_, static_cast<size_t>(d_));
      weight[r] = weight[r] * keep + simd().exp_sum(row, highest, count);
      best[r] = highest;
    }
  }

  template <class T = float>
  T* scratch(const Task& task, size_t at) const {
    return ws_.at<T>(task.args, task.worker, at);
  }

  DType dtype_;
  int64_t group_;
  float scale_;
  int64_t batch_, n_, heads_, d_, m_, kv_heads_;  // n: queries, m: keys
  int64_t block_, blocks_, tile_, tiles_;
  // By whether the block of queries and the tile of keys are the last ones, which may be shorter.
  std::vector<MatmulPrimitive> scores_, results_;
  Workspace ws_;
  // Of a thread: rows of keys or values, both packed, the queries, their scores for a tile and its weighted values; and
  // so far, the weighted values, the largest score and the sum of exponentials of each query.
  size_t line_at_ = 0, k_at_ = 0, v_at_ = 0, q_at_ = 0, scores_at_ = 0, values_at_ = 0, work_at_ = 0;
  size_t total_at_ = 0, best_at_ = 0, weight_at_ = 0;
};

}  // namespace

bool supports_block_attention(const StepSpec& spec) {
  const Attrs& attrs = spec.node.attrs;
  return attrs.integer("causal") && attrs.integer("block") > 1 && attrs.real("softcap") == 0 && spec.inputs.size() == 3;
}

Step make_block_attention(const StepSpec& spec) {
  auto attention = std::make_shared<const BlockAttention>(spec);
  Step step;
  step.scratch_bytes = attention->scratch_bytes(spec.threads);
  step.run = [attention](const StepArgs& args) { attention->run(args); };
  return step;
}

}  // namespace kinora::cpu
