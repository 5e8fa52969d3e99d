// Attention in one kernel: a block owns some queries of one head and walks over the keys, tile by tile, keeping the
// running maximum and sum of each query's softmax (Dao, FlashAttention-2, arXiv 2307.08691). 16-bit types use the
// tensor cores; attention_f32.cu has the float32 kernel.
#include "cuda/attention_tiles.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "ops/attention.h"

namespace kinora::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kMostDims = 512;

// From products q·k to scores in units of log 2, with soft cap, mask and bias; they lie as in cap_and_hide.
template <int MT, int NT>
__device__ inline void finish_scores(float (&s)[MT][NT][4], const AttentionArgs& a, const AttentionPlace& p, int row,
                                     int column) {
  cap_and_hide(s, a, row, column);
  if (!a.bias) return;
  if (a.bias_query == 0) {  // one value for all of the lane's queries
    const float* bias = bias_row(a, p, 0);
#pragma unroll
    for (int t = 0; t < NT; ++t) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        int key = column + 8 * t + e;
        float x = key < a.m ? __fmul_rn(bias[key], kLog2e) : 0.0f;
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          s[i][t][e] = __fadd_rn(s[i][t][e], x);
          s[i][t][e + 2] = __fadd_rn(s[i][t][e + 2], x);
        }
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < MT; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* bias = bias_row(a, p, row + 16 * i + 8 * half);
      if (a.bias_pairs) {
#pragma unroll
        for (int t = 0; t < NT; ++t) {
          int key = column + 8 * t;
          float2 x{};
          if (key < a.m) x = *reinterpret_cast<const float2*>(bias + key);
          s[i][t][2 * half] = __fadd_rn(s[i][t][2 * half], __fmul_rn(x.x, kLog2e));
          s[i][t][2 * half + 1] = __fadd_rn(s[i][t][2 * half + 1], __fmul_rn(x.y, kLog2e));
        }
        continue;
      }
#pragma unroll
      for (int t = 0; t < NT; ++t) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          int key = column + 8 * t + e;
          float x = key < a.m ? __fmul_rn(bias[key], kLog2e) : 0.0f;
          s[i][t][2 * half + e] = __fadd_rn(s[i][t][2 * half + e], x);
        }
      }
    }
  }
}

// s += Q·Kᵀ over 16 dimensions; `keys_at`: this lane's row of the first 16 keys there.
template <class T, int kStride, int MT, int NT>
__device__ inline void add_scores(float (&s)[MT][NT][4], const uint32_t (&queries)[MT][4], uint32_t keys_at) {
#pragma unroll
  for (int t = 0; t < NT / 2; ++t) {
    uint32_t keys[4];
    ldmatrix(keys, keys_at + 16 * t * kStride * sizeof(T));
#pragma unroll
    for (int i = 0; i < MT; ++i) {
      mma<T>(s[i][2 * t], queries[i], keys[0], keys[1]);
      mma<T>(s[i][2 * t + 1], queries[i], keys[2], keys[3]);
    }
  }
}

// o += S·V; the sums of one product are the A of the next without moving.
template <class T, int kStride, int MT, int NT, int DT>
__device__ inline void add_values(float (&o)[MT][DT][4], const float (&s)[MT][NT][4], uint32_t values_at) {
#pragma unroll
  for (int c = 0; c < NT / 2; ++c) {
    uint32_t weights[MT][4];
#pragma unroll
    for (int i = 0; i < MT; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float* pair = s[i][2 * c + e / 2] + e % 2 * 2;
        weights[i][e] = Pair<T>::of(pair[0], pair[1]);
      }
    }
#pragma unroll
    for (int t = 0; t < DT / 2; ++t) {
      uint32_t values[4];
      ldmatrix_transposed(values, values_at + (16 * c * kStride + 16 * t) * sizeof(T));
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        mma<T>(o[i][2 * t], weights[i], values[0], values[1]);
        mma<T>(o[i][2 * t + 1], weights[i], values[2], values[3]);
      }
    }
  }
}

// Four warps of 16·MT queries each; tiles of BN keys, the next one on its way while one is worked on.
template <class T, int D, int MT, int BN>
__global__ void __launch_bounds__(kThreads, 2) attention_kernel(const __grid_constant__ AttentionArgs a) {
  constexpr int kRows = 16 * MT * kWarps, kStride = D + 8, kTile = BN * kStride;
  constexpr bool kKeep = MT * D <= 128;  // the queries stay in registers
  extern __shared__ __align__(16) unsigned char shared[];
  begin_kernel();
  T *q_tile = reinterpret_cast<T*>(shared), *kv_tiles = q_tile + kRows * kStride;
  int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  AttentionPlace p = attention_place(a, kRows);
  const T* q = head_of<T>(a.q, a.q_at, p.batch, p.head);
  const T* k = head_of<T>(a.k, a.k_at, p.batch, p.head / a.group);
  const T* v = head_of<T>(a.v, a.v_at, p.batch, p.head / a.group);
  int2 range = key_tiles(a, p, kRows, BN);
  bool plain = !a.bias && !a.causal && a.softcap <= 0 && a.scale > 0;
  float unit = plain ? a.scale * kLog2e : 1.0f;

  auto load_keys = [&](int tile) {
    T* to = kv_tiles + (tile - range.x) % 2 * 2 * kTile;
    load_tile<T, D, BN, kThreads>(to, k, a.k_at.token, tile * BN, p.keys, a);
    load_tile<T, D, BN, kThreads>(to + kTile, v, a.v_at.token, tile * BN, p.keys, a);
    cp_async_commit();
  };
  load_tile<T, D, kRows, kThreads>(q_tile, q, a.q_at.token, p.first, a.n, a);
  load_keys(range.x);

  // Addresses of this lane's rows for ldmatrix: of Q as A, of K as B, of V as B transposed.
  T* own = q_tile + warp * 16 * MT * kStride;
  uint32_t q_at = shared_address(own + lane % 16 * kStride + lane / 16 * 8);
  uint32_t k_at = shared_address(kv_tiles + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
  uint32_t v_at = shared_address(kv_tiles + kTile + lane % 16 * kStride + lane / 16 * 8);
  uint32_t kept[kKeep ? MT : 1][kKeep ? D / 16 : 1][4];
  float o[MT][D / 8][4] = {};
  Softmax<MT> soft;
#pragma unroll
  for (int i = 0; i < 2 * MT; ++i) soft.top[i / 2][i % 2] = kNone, soft.sum[i / 2][i % 2] = 0;

  for (int tile = range.x; tile < range.y; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // the tile is there, and everyone is done with the one before
    if (tile + 1 < range.y) load_keys(tile + 1);
    auto offset = static_cast<uint32_t>((tile - range.x) % 2 * 2 * kTile * static_cast<int>(sizeof(T)));
    if constexpr (kKeep) {
      if (tile == range.x) {
#pragma unroll
        for (int i = 0; i < MT; ++i) {
#pragma unroll
          for (int c = 0; c < D / 16; ++c) ldmatrix(kept[i][c], q_at + (16 * i * kStride + 16 * c) * sizeof(T));
        }
      }
    }
    float s[MT][BN / 8][4] = {};
#pragma unroll
    for (int c = 0; c < D / 16; ++c) {
      uint32_t queries[MT][4];
#pragma unroll
      for (int i = 0; i < MT; ++i) {
        if constexpr (kKeep) {
#pragma unroll
          for (int e = 0; e < 4; ++e) queries[i][e] = kept[i][c][e];
        } else {
          ldmatrix(queries[i], q_at + (16 * i * kStride + 16 * c) * sizeof(T));
        }
      }
      add_scores<T, kStride>(s, queries, k_at + offset + 16 * c * sizeof(T));
    }
    int row = p.first + warp * 16 * MT + lane / 4, column = tile * BN + lane % 4 * 2;
    if (!plain) finish_scores(s, a, p, row, column);
    if ((tile + 1) * BN > p.keys) cut_off(s, column, p.keys);
    weigh(s, o, soft, unit);
    add_values<T, kStride>(o, s, v_at + offset);
  }
  write_rows<T, D, MT>(o, soft, own, a, p, p.first + warp * 16 * MT);
}

// For dimensions beyond what a warp can hold sums of: two warps share 16 queries. Both compute the scores, and each the
// sums of half of the dimensions.
template <class T, int kGroups, int BN>
__global__ void __launch_bounds__(64 * kGroups, 1) wide_attention_kernel(const __grid_constant__ AttentionArgs a) {
  constexpr int D = kMostDims, kHalf = D / 2, kBlock = 64 * kGroups, kRows = 16 * kGroups, kStride = D + 8;
  constexpr int kTile = BN * kStride;
  extern __shared__ __align__(16) unsigned char shared[];
  begin_kernel();
  T *q_tile = reinterpret_cast<T*>(shared), *kv_tiles = q_tile + kRows * kStride;
  int lane = static_cast<int>(threadIdx.x) % 32, group = static_cast<int>(threadIdx.x) / 64;
  int begin = static_cast<int>(threadIdx.x) / 32 % 2 * kHalf;  // of this warp's dimensions
  AttentionPlace p = attention_place(a, kRows);
  const T* k = head_of<T>(a.k, a.k_at, p.batch, p.head / a.group);
  const T* v = head_of<T>(a.v, a.v_at, p.batch, p.head / a.group);
  int2 range = key_tiles(a, p, kRows, BN);
  bool plain = !a.bias && !a.causal && a.softcap <= 0 && a.scale > 0;
  float unit = plain ? a.scale * kLog2e : 1.0f;

  auto load_keys = [&](int tile) {
    T* to = kv_tiles + (tile - range.x) % 2 * 2 * kTile;
    load_tile<T, D, BN, kBlock>(to, k, a.k_at.token, tile * BN, p.keys, a);
    load_tile<T, D, BN, kBlock>(to + kTile, v, a.v_at.token, tile * BN, p.keys, a);
    cp_async_commit();
  };
  const T* q = head_of<T>(a.q, a.q_at, p.batch, p.head);
  load_tile<T, D, kRows, kBlock>(q_tile, q, a.q_at.token, p.first, a.n, a);
  load_keys(range.x);

  T* own = q_tile + group * 16 * kStride;
  uint32_t q_at = shared_address(own + lane % 16 * kStride + lane / 16 * 8);
  uint32_t k_at = shared_address(kv_tiles + (lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
  uint32_t v_at = shared_address(kv_tiles + kTile + lane % 16 * kStride + lane / 16 * 8 + begin);
  float o[1][kHalf / 8][4] = {};
  Softmax<1> soft{{{kNone, kNone}}, {{0, 0}}};
  for (int tile = range.x; tile < range.y; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // the tile is there, and everyone is done with the one before
    if (tile + 1 < range.y) load_keys(tile + 1);
    auto offset = static_cast<uint32_t>((tile - range.x) % 2 * 2 * kTile * static_cast<int>(sizeof(T)));
    float s[1][BN / 8][4] = {};
#pragma unroll 8
    for (int c = 0; c < D / 16; ++c) {
      uint32_t queries[1][4];
      ldmatrix(queries[0], q_at + 16 * c * sizeof(T));
      add_scores<T, kStride>(s, queries, k_at + offset + 16 * c * sizeof(T));
    }
    int row = p.first + group * 16 + lane / 4, column = tile * BN + lane % 4 * 2;
    if (!plain) finish_scores(s, a, p, row, column);
    if ((tile + 1) * BN > p.keys) cut_off(s, column, p.keys);
    weigh(s, o, soft, unit);
    add_values<T, kStride>(o, s, v_at + offset);
  }
  __syncthreads();  // the queries' place becomes the results'
  write_rows<T, kHalf, 1, kStride>(o, soft, own + begin, a, p, p.first + group * 16, begin);
}

template <class T, int kGroups, int BN>
AttentionPlan wide_plan() {
  return {wide_attention_kernel<T, kGroups, BN>, 16 * kGroups, 64 * kGroups,
          static_cast<size_t>(16 * kGroups + 4 * BN) * (kMostDims + 8) * sizeof(T)};
}

template <class T>
AttentionPlan wide_plan_for(size_t shared_limit) {
  for (AttentionPlan plan : {wide_plan<T, 4, 32>(), wide_plan<T, 4, 16>()}) {
    if (plan.shared <= shared_limit) return plan;
  }
  return wide_plan<T, 2, 16>();
}

template <class T, int D, int MT, int BN>
AttentionPlan tensor_plan() {
  return {attention_kernel<T, D, MT, BN>, 16 * MT * kWarps, kThreads,
          static_cast<size_t>(16 * MT * kWarps + 4 * BN) * (D + 8) * sizeof(T)};
}

// 32 queries a warp halve the traffic from shared memory to the tensor cores; above 128 dimensions the sums leave no
// registers for that.
template <class T>
AttentionPlan tensor_plan_for(int64_t d, size_t shared_limit) {
  if (d <= 32) return tensor_plan<T, 32, 2, 64>();
  if (d <= 64) return tensor_plan<T, 64, 2, 64>();
  if (d <= 80) return tensor_plan<T, 80, 2, 64>();
  if (d <= 112) return tensor_plan<T, 112, 2, 64>();
  if (d <= 128) {
    AttentionPlan plan = tensor_plan<T, 128, 2, 64>();
    return plan.shared <= shared_limit ? plan : tensor_plan<T, 128, 1, 64>();
  }
  if (d <= 192) return tensor_plan<T, 192, 1, 32>();
  return d <= 256 ? tensor_plan<T, 256, 1, 32>() : wide_plan_for<T>(shared_limit);
}

AttentionPlan plan_for(const StepSpec& spec) {
  if (AttentionPlan plan = short_attention_plan(spec); plan.kernel) return plan;
  int64_t d = spec.inputs[0].shape[3];
  size_t limit = device_limits().shared_bytes;
  switch (spec.output().dtype) {
    case DType::bf16: return tensor_plan_for<__nv_bfloat16>(d, limit);
    case DType::f16: return tensor_plan_for<__half>(d, limit);
    default: return f32_attention_plan(d);
  }
}

// The bias broadcasts to [batch, heads, queries, keys].
void place_bias(const StepSpec& spec, size_t bias, AttentionArgs& a) {
  const Shape& shape = spec.inputs[bias].shape;
  Ints strides = strides_of(spec, bias);
  auto at = [&](int axis) { return shape[axis] == 1 ? 0 : strides[static_cast<size_t>(axis)]; };
  a.bias_batch = at(0), a.bias_head = at(1), a.bias_query = at(2);
}

}  // namespace

bool supports_attention(const StepSpec& spec) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() / 2;
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  if (q[3] > kMostDims || q[1] > kMost || k[1] > kMost || k[1] < 1) return false;
  size_t bias = attention_extras(spec.inputs).bias;
  if (bias && (spec.inputs[bias].shape[3] != k[1] || strides_of(spec, bias)[3] != 1)) return false;
  AttentionPlan plan = plan_for(spec);
  return plan.shared <= device_limits().shared_bytes && q[0] * q[2] * ceil_div(q[1], plan.rows) <= kMost;
}

Step make_attention(const StepSpec& spec) {
  const Shape &q = spec.inputs[0].shape, &k = spec.inputs[1].shape;
  const Attrs& attrs = spec.node.attrs;
  AttentionPlan plan = plan_for(spec);
  AttentionArgs a{};
  AttentionStrides at(spec);
  a.q_at = at.q, a.k_at = at.k, a.v_at = at.v, a.out_at = at.out;
  AttentionExtras extras = attention_extras(spec.inputs);
  bool biased = extras.bias > 0;
  if (biased) place_bias(spec, extras.bias, a);
  a.n = static_cast<int>(q[1]), a.m = static_cast<int>(k[1]), a.d = static_cast<int>(q[3]);
  a.heads = static_cast<int>(q[2]), a.group = static_cast<int>(q[2] / k[2]);
  a.tiles = static_cast<int>(ceil_div(q[1], plan.rows));
  a.window = static_cast<int>(std::min(attrs.integer("window"), q[1] + k[1]));
  a.block = static_cast<int>(std::min(attrs.integer("block"), std::max(q[1], k[1])));
  a.scale = static_cast<float>(attrs.real("scale")), a.softcap = static_cast<float>(attrs.real("softcap"));
  a.causal = attrs.integer("causal") != 0;
  // A query that sees no key at all weighs all keys alike, hidden ones too; a bias, or a window behind the last key,
  // can bring that about.
  a.skip = a.causal && !biased && (a.window == 0 || (q[1] - a.window < k[1] && !extras.lengths));
  auto per_pack = static_cast<int64_t>(16 / dtype_size(spec.output().dtype));
  bool vectors = q[3] % per_pack == 0;
  a.out_vectors = vectors && all_multiples(a.out_at, per_pack);
  for (const HeadStrides& input : {at.q, at.k, at.v}) vectors = vectors && all_multiples(input, per_pack);
  bool pairs = biased && a.m % 2 == 0 && a.bias_batch % 2 == 0 && a.bias_head % 2 == 0 && a.bias_query % 2 == 0;
  int64_t blocks = q[0] * (q[2] / plan.heads) * a.tiles;
  if (plan.shared > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(plan.kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(plan.shared)));
  }
  Step step;
  step.run = [=](const StepArgs& args) {
    if (blocks == 0) return;
    AttentionArgs now = a;
    now.q = args.in[0], now.k = args.in[1], now.v = args.in[2], now.out = args.out;
    now.bias = biased ? static_cast<const float*>(args.in[extras.bias]) : nullptr;
    now.lengths = extras.lengths ? static_cast<const int*>(args.in[extras.lengths]) : nullptr;
    now.vectors = vectors && is_aligned(now.q, 16) && is_aligned(now.k, 16) && is_aligned(now.v, 16);
    now.bias_pairs = pairs && is_aligned(now.bias, 8);
    now.out_vectors = a.out_vectors && is_aligned(now.out, 16);
    start_kernel(plan.kernel, static_cast<unsigned>(blocks), static_cast<size_t>(plan.threads), plan.shared,
                 stream_of(args), now);
  };
  return step;
}

}  // namespace kinora::cuda
