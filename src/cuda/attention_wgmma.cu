// Attention to the few keys of a caption, by Hopper's wgmma. A block stays on its multiprocessor and takes 128 queries
// after the other, those of one head in a row: the head's keys and values, at most two tiles, stay in shared memory
// meanwhile. Two warpgroups have 64 queries each, so that one's softmax runs beside the other's products; a third
// copies, and zeroes values behind the last key that counts (0 · NaN would be NaN).
#include <algorithm>

#include "cuda/attention_softmax.cuh"
#include "cuda/cudnn_attention.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/tensor_map.h"
#include "cuda/wgmma_float.cuh"
#include "ops/attention.h"

namespace kinora::cuda {
namespace {

constexpr int kKeys = 160, kTiles = 2, kGroups = 2, kQueries = 64;  // of a tile; tiles; warpgroups; of a warpgroup
constexpr int kGroupThreads = 128, kThreads = (kGroups + 1) * kGroupThreads, kRows = kGroups * kQueries;
constexpr uint32_t kRowBytes = 128;  // of 64 dimensions

struct Tensors {
  CUtensorMap q, k, v;
};

// What lies where in a block's shared memory: of each tensor 64 dimensions, then the next 64.
template <int D>
struct Places {
  static constexpr int kChunks = (D + 63) / 64;
  static constexpr uint32_t kKeyChunk = kKeys * kRowBytes, kQueryChunk = kQueries * kRowBytes;
  static constexpr uint32_t kKeyTile = kChunks * kKeyChunk, kQueryTile = kChunks * kQueryChunk;
  static constexpr uint32_t kQueriesAt = 2 * kTiles * kKeyTile, kBarriersAt = kQueriesAt + 2 * kGroups * kQueryTile;
  static constexpr uint32_t kShared = kBarriersAt + 256;
  static_assert(kKeyChunk % 1024 == 0 && kQueryChunk % 1024 == 0 && kShared <= 227 * 1024);
  static_assert(kGroupThreads / 32 * 16 * (D + 8) * 2 <= kQueryTile, "results leave through the queries' place");

  uint32_t base;
  __device__ uint32_t keys(int tile) const { return base + 2 * tile * kKeyTile; }
  __device__ uint32_t values(int tile) const { return keys(tile) + kKeyTile; }
  static __device__ uint32_t queries_at(int group, int turn) { return kQueriesAt + (2 * group + turn) * kQueryTile; }

  // Barriers: of the tiles' keys and values when copied, and when done with; of values with zeros behind them; of the
  // queries when copied, and when done with.
  __device__ uint32_t barrier(int i) const { return base + kBarriersAt + 8 * i; }
  __device__ uint32_t keys_full(int tile) const { return barrier(2 * tile); }
  __device__ uint32_t values_full(int tile) const { return barrier(2 * tile + 1); }
  __device__ uint32_t keys_empty(int tile) const { return barrier(4 + 2 * tile); }
  __device__ uint32_t values_empty(int tile) const { return barrier(5 + 2 * tile); }
  __device__ uint32_t values_ready(int tile) const { return barrier(8 + tile); }
  __device__ uint32_t queries_full(int group, int turn) const { return barrier(10 + 2 * group + turn); }
  __device__ uint32_t queries_empty(int group, int turn) const { return barrier(14 + 2 * group + turn); }
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// The block's share of all [batch, head, 128 queries], one after the other.
struct Work {
  const AttentionArgs& a;
  int item, begin, end;
  int batch, head, tile;  // of the item
  int keys;               // that count
  uint32_t parities = 0;  // bit t: of the present phase of tile t

  __device__ explicit Work(const AttentionArgs& args, int items) : a(args) {
    begin = static_cast<int>(int64_t{items} * blockIdx.x / gridDim.x);
    end = static_cast<int>(int64_t{items} * (blockIdx.x + 1) / gridDim.x);
    item = begin;
    tile = item % a.tiles, head = item / a.tiles % a.heads, batch = item / a.tiles / a.heads;
    count();
  }
  __device__ void count() { keys = keys_of(a, batch); }
  __device__ int tiles() const { return (keys + kKeys - 1) / kKeys; }
  __device__ int first() const { return tile * kRows; }
  __device__ uint32_t parity(int t) const { return parities >> t & 1; }
  __device__ bool left() const { return item < end; }
  __device__ bool opens() const { return item == begin || tile == 0; }  // its head
  __device__ bool closes() const { return item + 1 == end || tile + 1 == a.tiles; }
  __device__ int turn() const { return (item - begin) % 2; }
  __device__ uint32_t turn_parity() const { return static_cast<uint32_t>((item - begin) / 2 % 2); }
  __device__ void next() {
    if (closes()) parities ^= (1u << tiles()) - 1;
    ++item;
    if (++tile < a.tiles) return;
    tile = 0;
    if (++head < a.heads) return;
    head = 0;
    ++batch;
    if (left()) count();
  }
};

// Which queries meet which tile of keys, and the phases in which they are there.
struct Scores {
  int tile, turn;
  uint32_t parity, turn_parity;
  bool closes;
  __device__ Scores(const Work& work, int t)
      : tile(t), turn(work.turn()), parity(work.parity(t)), turn_parity(work.turn_parity()), closes(work.closes()) {}
};

// The copying thread.
template <int D>
__device__ void copy_all(const AttentionArgs& a, const Tensors& tensors, int items, Places<D> at) {
  using P = Places<D>;
  for (Work work(a, items); work.left(); work.next()) {
    for (int g = 0; g < kGroups; ++g) {
      uint32_t full = at.queries_full(g, work.turn()), to = at.base + P::queries_at(g, work.turn());
      barrier_wait(at.queries_empty(g, work.turn()), work.turn_parity() ^ 1);
      barrier_expect(full, P::kQueryTile);
      for (int c = 0; c < P::kChunks; ++c) {
        copy_box(to + c * P::kQueryChunk, tensors.q, 64 * c, work.head, work.first() + g * kQueries, work.batch, full);
      }
    }
    for (int t = 0; work.opens() && t < work.tiles(); ++t) {
      auto copy = [&](uint32_t to, const CUtensorMap& map, uint32_t empty, uint32_t full) {
        barrier_wait(empty, work.parity(t) ^ 1);
        barrier_expect(full, P::kKeyTile);
        for (int c = 0; c < P::kChunks; ++c) {
          copy_box(to + c * P::kKeyChunk, map, 64 * c, work.head, t * kKeys, work.batch, full);
        }
      };
      copy(at.keys(t), tensors.k, at.keys_empty(t), at.keys_full(t));
      copy(at.values(t), tensors.v, at.values_empty(t), at.values_full(t));
    }
  }
}

// One warp.
template <int D>
__device__ void zero_what_does_not_count(const AttentionArgs& a, int items, unsigned char* shared, Places<D> at) {
  using P = Places<D>;
  int lane = static_cast<int>(threadIdx.x) % 32;
  for (Work work(a, items); work.left(); work.next()) {
    for (int t = 0; work.opens() && t < work.tiles(); ++t) {
      barrier_wait(at.values_full(t), work.parity(t));
      int begin = min(work.keys - t * kKeys, kKeys), end = min(a.m - t * kKeys, kKeys);
      for (int c = 0; c < P::kChunks; ++c) {
        auto* rows = reinterpret_cast<uint4*>(shared + at.values(t) - at.base + c * P::kKeyChunk);
        for (int i = begin * 8 + lane; i < end * 8; i += 32) rows[i] = uint4{};
      }
      shared_written();
      __syncwarp();
      if (lane == 0) barrier_arrive(at.values_ready(t));
    }
  }
}

// Registers that products have written are read after the wait only.
template <int N>
__device__ inline void written(float (&sums)[N][4]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[j][i])::"memory");
  }
}

template <class T, int D>
__device__ inline void multiply_keys(float (&s)[kKeys / 8][4], uint32_t queries, uint32_t keys) {
  using P = Places<D>;
  wgmma_fence();
#pragma unroll
  for (uint32_t c = 0; c < (D + 15) / 16; ++c) {
    wgmma_rows<T, kKeys>(s, rows_descriptor(queries + c / 4 * P::kQueryChunk) + 2 * (c % 4),
                         rows_descriptor(keys + c / 4 * P::kKeyChunk) + 2 * (c % 4), c);
  }
  wgmma_commit();
}

template <class T>
__device__ inline void pack_weights(uint32_t (&weights)[kKeys / 16][4], const float (&s)[kKeys / 8][4]) {
#pragma unroll
  for (int c = 0; c < kKeys / 16; ++c) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      weights[c][e] = Pair<T>::of(s[2 * c + e / 2][e % 2 * 2], s[2 * c + e / 2][e % 2 * 2 + 1]);
  }
}

template <class T, int D>
__device__ inline void multiply_values(float (&o)[D / 8][4], const uint32_t (&weights)[kKeys / 16][4],
                                       uint32_t values) {
  uint64_t columns = columns_descriptor(values, Places<D>::kKeyChunk);
  wgmma_fence();
#pragma unroll
  for (uint32_t c = 0; c < kKeys / 16; ++c) wgmma_columns<T, D>(o, weights[c], columns + 128 * c);
  wgmma_commit();
}

// The warpgroups issue their products in turns, so that each one's softmax falls beside the other's products.
struct Turns {
  static constexpr int kBarrier = 1 + kGroups;  // behind those of one warpgroup each
  int group;
  __device__ explicit Turns(int warpgroup) : group(warpgroup) {
    if (group > 0) give();
  }
  __device__ void take() const { barrier_sync(kBarrier + group, kGroups * kGroupThreads); }
  __device__ void give() const { barrier_arrive(kBarrier + 1 - group, kGroups * kGroupThreads); }
};

// A warpgroup. The products of some weights with their values and of the next queries with their keys go together; what
// follows the last ones are these once more, whose results nobody reads.
template <class T, int D>
__device__ void attend(const AttentionArgs& a, int items, unsigned char* shared, Places<D> at) {
  using P = Places<D>;
  int group = static_cast<int>(threadIdx.x) / kGroupThreads, warp = static_cast<int>(threadIdx.x) / 32 % 4;
  int lane = static_cast<int>(threadIdx.x) % 32;
  auto release = [&](uint32_t barrier, bool done) {
    __syncwarp();
    if (done && lane == 0) barrier_arrive(barrier);
  };
  auto multiply = [&](float(&s)[kKeys / 8][4], const Scores& of) {
    barrier_wait(at.queries_full(group, of.turn), of.turn_parity);
    barrier_wait(at.keys_full(of.tile), of.parity);
    multiply_keys<T, D>(s, at.base + P::queries_at(group, of.turn), at.keys(of.tile));
  };
  Turns turns(group);
  Work work(a, items);
  float s[1][kKeys / 8][4], o[1][D / 8][4];
  turns.take();
  multiply(s[0], Scores(work, 0));
  turns.give();
  wgmma_wait<0>();
  written(s[0]);
  release(at.keys_empty(0), work.closes());
  while (work.left()) {
    int tiles = work.tiles(), first = work.first() + group * kQueries + warp * 16;
    bool closes = work.closes();
    Softmax<1> soft{{{kNone, kNone}}, {{0, 0}}};
#pragma unroll
    for (int j = 0; j < D / 8; ++j) o[0][j][0] = o[0][j][1] = o[0][j][2] = o[0][j][3] = 0;
    Work after = work;
    after.next();
#pragma unroll 1
    for (int t = 0; t < tiles; ++t) {
      if ((t + 1) * kKeys > work.keys) cut_off(s, t * kKeys + lane % 4 * 2, work.keys);
      weigh(s, o, soft, a.scale * kLog2e);
      uint32_t weights[kKeys / 16][4];
      pack_weights<T>(weights, s[0]);
      barrier_wait(at.values_ready(t), work.parity(t));
      bool ends = t + 1 == tiles, more = !ends || after.left();
      Scores next = ends && more ? Scores(after, 0) : Scores(work, ends ? 0 : t + 1);
      turns.take();
      multiply_values<T, D>(o[0], weights, at.values(t));
      multiply(s[0], next);
      turns.give();
      wgmma_wait<0>();
      written(s[0]);
      written(o[0]);
      release(at.values_empty(t), closes);
      release(at.keys_empty(next.tile), more && next.closes);
    }
    barrier_sync(1 + group, kGroupThreads);  // all are done with the queries
    T* tile = reinterpret_cast<T*>(shared + P::queries_at(group, work.turn())) + warp * 16 * (D + 8);
    stage_rows<T, D, 1>(o, soft, tile);
    // To registers first: the copies that will take the place wait for what threads do before, stores to memory too.
    constexpr int kPacks = D / 8, kEach = (16 * kPacks + 31) / 32;
    Pack<T> packs[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      int pack = i * 32 + lane;
      if (pack < 16 * kPacks) packs[i] = load_pack(tile + pack / kPacks * (D + 8) + pack % kPacks * 8);
    }
    shared_written();
    release(at.queries_empty(group, work.turn()), true);
    T* out = static_cast<T*>(a.out) + work.batch * a.out_at.batch + work.head * a.out_at.head;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      int pack = i * 32 + lane, row = first + pack / kPacks;
      if (pack < 16 * kPacks && row < a.n) store_pack(out + row * a.out_at.token + pack % kPacks * 8, packs[i]);
    }
    work.next();
  }
}

#endif

template <class T, int D>
__global__ void __launch_bounds__(kThreads, 1)
    few_keys_kernel(const __grid_constant__ AttentionArgs a, const __grid_constant__ Tensors tensors, int items) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) unsigned char shared_few_keys[];
  Places<D> at{shared_address(shared_few_keys)};
  if (threadIdx.x == 0) {
    constexpr uint32_t kWarps = kGroupThreads / 32;
    for (int t = 0; t < kTiles; ++t) {
      barrier_init(at.keys_full(t), 1);
      barrier_init(at.values_full(t), 1);
      barrier_init(at.values_ready(t), 1);
      barrier_init(at.keys_empty(t), kGroups * kWarps);
      barrier_init(at.values_empty(t), kGroups * kWarps);
    }
    for (int g = 0; g < kGroups; ++g) {
      for (int turn = 0; turn < 2; ++turn) {
        barrier_init(at.queries_full(g, turn), 1);
        barrier_init(at.queries_empty(g, turn), kWarps);
      }
    }
    barriers_made();
  }
  __syncthreads();
  begin_kernel();
  int warp = static_cast<int>(threadIdx.x) / 32 - kGroups * kGroupThreads / 32;  // of those that do not multiply
  if (warp >= 0) {
    give_registers<40>();
    if (warp == 0 && threadIdx.x % 32 == 0) copy_all<D>(a, tensors, items, at);
    if (warp == 1) zero_what_does_not_count<D>(a, items, shared_few_keys, at);
  } else {
    take_registers<232>();
    attend<T, D>(a, items, shared_few_keys, at);
  }
#endif
}

// [batch, tokens, heads, dim] in boxes of `rows` tokens of one head.
template <class T>
CUtensorMap heads_map(const Shape& shape, const HeadStrides& at, const void* base, int rows) {
  auto extent = [&](int axis) { return static_cast<cuuint64_t>(shape[axis]); };
  // An axis of one element has no stride, but the driver wants one.
  auto bytes = [&](int axis, int64_t stride) {
    return static_cast<cuuint64_t>((shape[axis] == 1 ? shape[3] : stride) * static_cast<int64_t>(sizeof(T)));
  };
  cuuint64_t extents[] = {extent(3), extent(2), extent(1), extent(0)};
  cuuint64_t strides[] = {bytes(2, at.head), bytes(1, at.token), bytes(0, at.batch)};
  cuuint32_t box[] = {kRowBytes / sizeof(T), 1, static_cast<cuuint32_t>(rows), 1};
  constexpr bool kHalf = std::is_same_v<T, __half>;
  return tensor_map(kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, base, extents, strides,
                    box);
}

template <class T, int D>
Step make(const StepSpec& spec) {
  Shape q = spec.inputs[0].shape, k = spec.inputs[1].shape;
  AttentionStrides at(spec);
  AttentionArgs a{};
  a.out_at = at.out;
  a.n = static_cast<int>(q[1]), a.m = static_cast<int>(k[1]), a.d = D, a.heads = static_cast<int>(q[2]);
  a.tiles = static_cast<int>(ceil_div(q[1], kRows));
  a.scale = static_cast<float>(spec.node.attrs.real("scale"));
  size_t lengths = attention_extras(spec.inputs).lengths;
  int items = static_cast<int>(q[0] * q[2] * a.tiles), blocks = std::min(items, device_limits().multiprocessors);
  constexpr auto kShared = static_cast<int>(Places<D>::kShared);
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(few_keys_kernel<T, D>),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  Step step;
  step.run = [=](const StepArgs& args) {
    AttentionArgs now = a;
    now.out = args.out;
    now.lengths = lengths ? static_cast<const int*>(args.in[lengths]) : nullptr;
    Tensors tensors{heads_map<T>(q, at.q, args.in[0], kQueries), heads_map<T>(k, at.k, args.in[1], kKeys),
                    heads_map<T>(k, at.v, args.in[2], kKeys)};
    start_kernel(few_keys_kernel<T, D>, static_cast<unsigned>(blocks), kThreads, kShared, stream_of(args), now, tensors,
                 items);
  };
  return or_own_attention(spec, std::move(step));
}

}  // namespace

// Of Sana's two widths. With few queries the copies of keys and values are the work, and attention.cu does it as well.
bool supports_few_keys_attention(const StepSpec& spec) {
#ifdef KINORA_SM90A
  const Attrs& attrs = spec.node.attrs;
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  const DeviceLimits& limits = device_limits();
  bool plain = !attention_extras(spec.inputs).bias && !attrs.integer("causal") && attrs.real("softcap") <= 0 &&
               attrs.real("scale") > 0 && spec.output().dtype != DType::f32;
  bool fits = (q[3] == 72 || q[3] == 112) && q[2] == k[2] && k[1] >= 1 && k[1] <= kTiles * kKeys && q[1] >= 256 &&
              q[0] * q[2] * q[1] <= std::numeric_limits<int>::max();
  return plain && fits && q[0] > 0 && AttentionStrides(spec).all_multiples(8) && limits.major == 9 &&
         limits.minor == 0 && limits.shared_bytes >= Places<112>::kShared && makes_tensor_maps();
#else
  return static_cast<void>(spec), false;
#endif
}

Step make_few_keys_attention(const StepSpec& spec) {
  bool narrow = spec.inputs[0].shape[3] == 72;
  if (spec.output().dtype == DType::bf16) {
    return narrow ? make<__nv_bfloat16, 72>(spec) : make<__nv_bfloat16, 112>(spec);
  }
  return narrow ? make<__half, 72>(spec) : make<__half, 112>(spec);
}

}  // namespace kinora::cuda
