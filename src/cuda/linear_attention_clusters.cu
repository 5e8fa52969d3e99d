// ReLU linear attention in one kernel. A cluster of blocks has a head, each block a chunk of the tokens: it sums their
// state, adds what the others have, in the same order everywhere, and meets its queries with it.
#include "cuda/clusters.cuh"
#include "cuda/linear_attention.cuh"

namespace kinora::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kPairs = kLinearState / 2;
constexpr int kParts = 2;   // of T, into which the state is split: together far more exact than the result
constexpr int kStages = 4;  // steps that a warp's copies are ahead
constexpr int kMostBlocks = 8;
constexpr uint32_t kRow = 2 * kLinearDim, kStepBytes = kLinearStep * kRow;

struct Shared {
  union {
    uint8_t tokens[kWarps][kStages][2][kStepBytes];  // keys, values
    struct {                                         // and when they are done with
      float sums[kWarps][kLinearState];
      uint8_t queries[kWarps][kStages][kStepBytes];
    };
  };
  float2 mine[kPairs];
  uint32_t split[kParts][kPairs];
  float tops[kWarps];
};

#if __CUDA_ARCH__ >= 900

constexpr int kAll = kWarps * kLinearStep;  // tokens that the warps take at a time
constexpr int kEach = (kPairs + kThreads - 1) / kThreads;

// Where a unit of 16 bytes of a token's keys or values lies in its step, so that lanes that read elements 4g .. 4g + 3
// of tokens 4c + u, as Tokens has them, meet all banks.
__device__ inline uint32_t token_unit(uint32_t token, uint32_t unit) {
  return (token ^ token / 4 % 2) * kRow + (unit ^ token / 8 % 2 * 2) * 16;
}

// The steps of one warp among tokens [first, end), kAll apart. Copies of a step's rows go to one of kStages places.
template <class T>
class Steps {
 public:
  __device__ Steps(int first, int end) : lane_(threadIdx.x % 32), first_(first), end_(end) {
    first_ += static_cast<int>(threadIdx.x / 32) * kLinearStep;
  }
  __device__ int count() const { return (end_ - first_ + kAll - 1) / kAll; }
  __device__ int token(int step) const { return first_ + step * kAll; }
  __device__ int end() const { return end_; }

  // kMixed: as token_unit says; else row after row.
  template <bool kMixed>
  __device__ void copy(uint32_t to, const T* rows, int64_t row, int step) const {
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      uint32_t at = lane_ / 4 + 8 * i, unit = lane_ % 4;
      int token = this->token(step) + static_cast<int>(at);
      bool there = token < end_;
      cp_async(to + (kMixed ? token_unit(at, unit) : at * kRow + unit * 16),
               rows + (there ? token * row : 0) + unit * 8, there);
    }
  }

 private:
  uint32_t lane_;
  int first_, end_;
};

// The sums of the warp's tokens.
template <class T>
__device__ void sum_tokens(const LinearArgs& a, int batch, int head, const Steps<T>& steps, TokenSums& sums,
                           uint32_t place) {
  uint32_t lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const T *k = head_of<T>(a.k, a.k_at, batch, head), *v = head_of<T>(a.v, a.v_at, batch, head);
  auto copy = [&](int step) {
    uint32_t to = place + static_cast<uint32_t>(step % kStages) * 2 * kStepBytes;
    if (step < steps.count()) {
      steps.template copy<true>(to, k, a.k_at.token, step);
      steps.template copy<true>(to + kStepBytes, v, a.v_at.token, step);
    }
    cp_async_commit();
  };
  auto read = [](uint32_t from) {
    uint2 two;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(two.x), "=r"(two.y) : "r"(from) : "memory");
    return two;
  };
  for (int step = 0; step < kStages; ++step) copy(step);
  for (int step = 0; step < steps.count(); ++step) {
    cp_async_wait<kStages - 1>();
    __syncwarp();
    uint32_t from = place + static_cast<uint32_t>(step % kStages) * 2 * kStepBytes;
    Tokens tokens;
#pragma unroll
    for (uint32_t u = 0; u < 4; ++u) {
      uint32_t at = token_unit(4 * c + u, g / 2) + g % 2 * 8;
      tokens.k[u] = read(from + at);
      tokens.v[u] = read(from + kStepBytes + at);
    }
    sums.add<T>(tokens);
    __syncwarp();
    copy(step + kStages);
  }
}

// The cluster's state to `shared.split`, each value the sum of its parts over the factor that is returned: a power of
// two by which it fits T.
template <class T>
__device__ float join_states(Shared& shared, int blocks) {
  auto me = static_cast<int>(threadIdx.x);
  for (int i = me; i < kPairs; i += kThreads) {
    float2 total{};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      float2 more = *reinterpret_cast<const float2*>(&shared.sums[w][2 * i]);
      total.x += more.x;
      total.y += more.y;
    }
    shared.mine[i] = total;
  }
  cluster_arrive();
  cluster_wait();
  float2 totals[kEach];
  float top = 0;
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    int i = me + e * kThreads;
    totals[e] = {};
    for (int rank = 0; rank < blocks && i < kPairs; ++rank) {
      float2 more = load_from_block(shared_address(&shared.mine[i]), static_cast<uint32_t>(rank));
      totals[e].x += more.x;
      totals[e].y += more.y;
    }
    top = fmaxf(top, fmaxf(fabsf(totals[e].x), fabsf(totals[e].y)));
  }
  cluster_arrive();  // waited for before the block ends: others may read its sums still
  float factor = 1;
  if constexpr (Pair<T>::kNarrow) {  // float16: the largest becomes 2^14 .. 2^15
    top = warp_max(top);
    if (me % 32 == 0) shared.tops[me / 32] = top;
    __syncthreads();
    for (float other : shared.tops) top = fmaxf(top, other);
    int exponent = top > 0 ? 15 - min(max(ilogbf(top) + 1, -100), 120) : 0;
    factor = ldexpf(1.0f, exponent);
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    int i = me + e * kThreads;
    if (i >= kPairs) break;
    float low = totals[e].x * factor, high = totals[e].y * factor;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      uint32_t bits = Pair<T>::of(low, high);
      float2 taken = Pair<T>::floats(bits);
      shared.split[part][i] = bits;
      low -= taken.x;
      high -= taken.y;
    }
  }
  __syncthreads();
  return factor;
}

// The queries of the warp's tokens. Lane (g, c) reads elements 8c .. 8c + 7 of those of tokens g and g + 8: along k,
// product s has 8c + 4s .. 8c + 4s + 3. Column g of product t is element 8·(g / 2) + 2t + g % 2 of the result, so that
// a lane ends with elements 8c .. 8c + 7; product 4 has the denominator as its column 0.
template <class T>
class Queries {
 public:
  // The first ones set out.
  __device__ Queries(const LinearArgs& a, int batch, int head, const Steps<T>& steps, uint32_t place)
      : a_(a), steps_(steps), place_(place), lane_(threadIdx.x % 32) {
    q_ = head_of<T>(a.q, a.q_at, batch, head);
    out_ = static_cast<T*>(a.out) + (static_cast<int64_t>(batch) * a.n * a.heads + head) * kLinearDim + lane_ % 4 * 8;
    for (int step = 0; step < kStages; ++step) copy(step);
  }

  __device__ void apply(const Shared& shared, float factor) {
    uint4 state[5][kParts];  // [product, part]: half of k, register
    uint32_t g = lane_ / 4, c = lane_ % 4;
#pragma unroll
    for (uint32_t t = 0; t < 5; ++t) {
      uint32_t row = t < 4 ? 8 * (g / 2) + 2 * t + g % 2 : kLinearDim;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const uint32_t* from = &shared.split[part][row * (kLinearDim / 2) + 4 * c];
        state[t][part] = t < 4 || g == 0 ? *reinterpret_cast<const uint4*>(from) : uint4{};
      }
    }
    float eps = a_.eps * factor;
    for (int step = 0; step < steps_.count(); ++step) {
      cp_async_wait<kStages - 1>();
      __syncwarp();
      uint4 x[2] = {read(step, g), read(step, g + 8)};
      __syncwarp();
      copy(step + kStages);
      const uint32_t queries[2][4] = {
          {Pair<T>::relu(x[0].x), Pair<T>::relu(x[1].x), Pair<T>::relu(x[0].y), Pair<T>::relu(x[1].y)},
          {Pair<T>::relu(x[0].z), Pair<T>::relu(x[1].z), Pair<T>::relu(x[0].w), Pair<T>::relu(x[1].w)}};
      float sums[5][4] = {};
#pragma unroll
      for (int part = kParts - 1; part >= 0; --part) {  // the small ones first
#pragma unroll
        for (int t = 0; t < 5; ++t) {
          mma<T>(sums[t], queries[0], state[t][part].x, state[t][part].y);
          mma<T>(sums[t], queries[1], state[t][part].z, state[t][part].w);
        }
      }
      store(steps_.token(step), sums, eps);
    }
  }

 private:
  __device__ uint32_t place(int step) const { return place_ + static_cast<uint32_t>(step % kStages) * kStepBytes; }
  __device__ void copy(int step) const {
    if (step < steps_.count()) steps_.template copy<false>(place(step), q_, a_.q_at.token, step);
    cp_async_commit();
  }
  __device__ uint4 read(int step, uint32_t row) const {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(place(step) + row * kRow + lane_ % 4 * 16)
                 : "memory");
    return x;
  }

  __device__ void store(int token, const float (&sums)[5][4], float eps) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float factor = 1.0f / (__shfl_sync(0xffffffffu, sums[4][2 * half], lane_ / 4 * 4) + eps);
      auto pair = [&](int t) { return Pair<T>::of(sums[t][2 * half] * factor, sums[t][2 * half + 1] * factor); };
      uint4 y = make_uint4(pair(0), pair(1), pair(2), pair(3));
      int at = token + static_cast<int>(lane_ / 4) + 8 * half;
      if (at < steps_.end()) *reinterpret_cast<uint4*>(out_ + int64_t{at} * a_.heads * kLinearDim) = y;
    }
  }

  const LinearArgs& a_;
  const Steps<T>& steps_;
  uint32_t place_, lane_;
  const T* q_;
  T* out_;
};

#endif

template <class T>
__global__ void __launch_bounds__(kThreads, 3) cluster_kernel(const __grid_constant__ LinearArgs a) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  begin_kernel();
  int block = static_cast<int>(blockIdx.x), rank = block % a.chunks, item = block / a.chunks;
  int batch = item / a.heads, head = item % a.heads, first = rank * a.chunk;
  uint32_t warp = threadIdx.x / 32;
  Steps<T> steps(first, min(a.n, first + a.chunk));
  TokenSums sums;
  sum_tokens<T>(a, batch, head, steps, sums, shared_address(shared.tokens[warp]));
  __syncthreads();
  Queries<T> queries(a, batch, head, steps, shared_address(shared.queries[warp]));
  sums.store(shared.sums[warp]);
  __syncthreads();
  queries.apply(shared, join_states<T>(shared, a.chunks));
  cluster_wait();
#endif
}

template <class T>
void launch(const LinearArgs& a, int64_t batch, cudaStream_t stream) {
  auto blocks = static_cast<unsigned>(batch * a.heads * a.chunks);
  start_clusters(cluster_kernel<T>, static_cast<unsigned>(a.chunks), blocks, kThreads, sizeof(Shared), stream, a);
}

template <class T>
void allow_memory() {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(cluster_kernel<T>),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)));
}

}  // namespace

bool prepare_linear_attention_clusters(DType dtype) {
  if (!begins_early()) return false;
  dtype == DType::f16 ? allow_memory<__half>() : allow_memory<__nv_bfloat16>();
  return true;
}

void run_linear_attention_clusters(const LinearArgs& arguments, int64_t batch, DType dtype, cudaStream_t stream) {
  constexpr int kTokens = 512;  // of a block, where eight are not too few for the tokens
  LinearArgs a = arguments;
  int blocks = std::min(kMostBlocks, static_cast<int>(ceil_div(a.n, kTokens)));
  a.chunk = static_cast<int>(ceil_div(ceil_div(a.n, blocks), kLinearStep)) * kLinearStep;
  a.chunks = static_cast<int>(ceil_div(a.n, a.chunk));
  dtype == DType::f16 ? launch<__half>(a, batch, stream) : launch<__nv_bfloat16>(a, batch, stream);
}

}  // namespace kinora::cuda
