// What the attention kernels share: where things lie, which keys a query sees, how a kernel is launched.
#pragma once

#include <limits>

#include "cuda/device.cuh"
#include "cuda/heads.h"

namespace kinora::cuda {

constexpr float kHidden = -1e30f;  // the score of a key that causality or the window hides
constexpr float kNone = -std::numeric_limits<float>::infinity();

struct AttentionArgs {
  const void *q, *k, *v;
  const float* bias;   // or null
  const int* lengths;  // of the keys, one for each batch item; or null: all have m
  void* out;           // [batch, n, heads, d]
  HeadStrides q_at, k_at, v_at, out_at;
  int64_t bias_batch, bias_head, bias_query;
  int n, m, d, heads, group, tiles;
  int window, block;
  float scale, softcap;
  bool causal;
  bool skip;         // tiles of hidden keys alone change nothing
  bool vectors;      // q, k and v can be read 16 bytes at a time
  bool out_vectors;  // so can the result be written
  bool bias_pairs;   // the bias can be read two keys at a time
};

struct AttentionPlace {
  int batch, head, first;  // first query of this block
  int keys;                // that are there
};

// Of an item's keys those that count, at least one.
__device__ inline int keys_of(const AttentionArgs& a, int batch) {
  return a.lengths ? max(1, min(a.lengths[batch], a.m)) : a.m;
}

__device__ inline AttentionPlace attention_place(const AttentionArgs& a, int rows) {
  int item = static_cast<int>(blockIdx.x / static_cast<unsigned>(a.tiles));
  int tile = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.tiles));
  if (a.skip) tile = a.tiles - 1 - tile;  // those that see the most keys begin first
  int batch = item / a.heads;
  return {batch, item % a.heads, tile * rows, keys_of(a, batch)};
}

// A query sees the keys `first` .. `last`, as far as causality and the window go.
struct SeenKeys {
  int first, last;
  __device__ bool hides(int key) const { return key < first || key > last; }
};
__device__ inline SeenKeys seen_keys(const AttentionArgs& a, int query) {
  return {a.window > 0 ? query - a.window + 1 : 0, a.block > 1 ? (query / a.block + 1) * a.block - 1 : query};
}

// The tiles of keys [begin, end) that the block's queries look at.
__device__ inline int2 key_tiles(const AttentionArgs& a, const AttentionPlace& p, int rows, int keys) {
  int begin = 0, end = (p.keys + keys - 1) / keys;
  if (a.skip) {
    end = min(end, seen_keys(a, min(p.first + rows, a.n) - 1).last / keys + 1);
    begin = max(0, seen_keys(a, p.first).first) / keys;
  }
  return {begin, end};
}

__device__ inline const float* bias_row(const AttentionArgs& a, const AttentionPlace& p, int query) {
  return a.bias + p.batch * a.bias_batch + p.head * a.bias_head + min(query, a.n - 1) * a.bias_query;
}

struct AttentionPlan {
  void (*kernel)(AttentionArgs) = nullptr;  // one that calls begin_kernel()
  int rows = 0, threads = 0;                // queries and threads of a block
  size_t shared = 0;                        // bytes
  int heads = 1;                            // of a block
};

AttentionPlan f32_attention_plan(int64_t d);  // d <= 512
// Where it runs, which no batch changes; else a plan without kernel. (attention_short.cu)
AttentionPlan short_attention_plan(const StepSpec& spec);

}  // namespace kinora::cuda
