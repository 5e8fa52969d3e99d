// Products with coded weights by Hopper's wgmma, as resultᵀ = w · xᵀ: each of two warpgroups decodes the codes of 64
// rows of w into registers, where wgmma takes them from, while the products of those before are under way. A block
// stays on its multiprocessor and makes tile after tile; one thread copies x and codes into stages of shared memory.
#include "cuda/coded_product.h"
#include "cuda/coded_tiles.h"
#include "cuda/int8_tiles.h"
#include "cuda/product_finish.cuh"
#include "cuda/quantize.cuh"
#include "cuda/tensor_map.h"
#include "cuda/wgmma.cuh"

namespace kinora::cuda {
namespace {

constexpr int kRows = 128, kDepth = 64;                              // of a tile along n; values of a stage along k
constexpr int kMultiplying = 8, kThreads = (kMultiplying + 4) * 32;  // warps that multiply, and a warpgroup that copies
constexpr uint32_t kSharedLimit = 227 * 1024;

// A stage's codes of a thread's two rows (eight apart) become w, four registers for each 16 values. Stages are of kRow
// bytes a row; `factors` of a stage: what load gives.
struct Fp4Codes {
  static constexpr int kRow = kDepth / 2;
  struct Factors {
    uint32_t scales[2];  // of each row four
  };

  const uint32_t* scales;
  float scale_2;     // times 2^14, see fp4_upper
  uint32_t rows[2];  // where their scales begin

  // With the scale of blocks times scale_2 as one number, rounded, as Decoder has it (but below 2^-126).
  __device__ explicit Fp4Codes(const CodedWeight& weight)
      : scales(static_cast<const uint32_t*>(weight.scale)), scale_2(*weight.scale_2 * 0x1p14f) {}
  __device__ void begin_rows(const CodedArguments& p, const int (&of)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) rows[i] = static_cast<uint32_t>(of[i]) * static_cast<uint32_t>(p.k / kDepth);
  }
  __device__ void load(Factors& factors, int step) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) factors.scales[i] = __ldg(scales + (rows[i] + static_cast<uint32_t>(step)));
  }

  template <class T>
  __device__ void decode(uint32_t (&w)[kDepth / 16][4], const uint8_t* codes, const Factors& factors) const {
    uint32_t selector = fp4_selector(threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint4 words = *reinterpret_cast<const uint4*>(codes + 8 * i * kRow + 16 * half);
        float2 scale = fp8_pair(factors.scales[i] >> (16 * half));
        decode_block<T>(w[2 * half], i, __byte_perm(words.x, words.y, selector), __fmul_rn(scale.x, scale_2));
        decode_block<T>(w[2 * half + 1], i, __byte_perm(words.z, words.w, selector), __fmul_rn(scale.y, scale_2));
      }
    }
  }

 private:
  template <class T>
  __device__ static void decode_block(uint32_t (&w)[4], int row, uint32_t bytes, float factor) {
    float2 even = Pair<__half>::floats(fp4_lower(bytes)), odd = Pair<__half>::floats(fp4_upper(bytes));
    w[row] = Pair<T>::of(__fmul_rn(even.x, factor), __fmul_rn(odd.x, factor));
    w[row + 2] = Pair<T>::of(__fmul_rn(even.y, factor), __fmul_rn(odd.y, factor));
  }
};

template <bool kFp8>
struct ByteCodes {
  static constexpr int kRow = kDepth;
  struct Factors {};

  float scales[2];

  __device__ explicit ByteCodes(const CodedWeight&) {}
  __device__ void begin_rows(const CodedArguments& p, const int (&of)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) scales[i] = __ldg(static_cast<const float*>(p.weight.scale) + of[i]);
  }
  __device__ void load(Factors&, int) const {}

  template <class T>
  __device__ void decode(uint32_t (&w)[kDepth / 16][4], const uint8_t* codes, const Factors&) const {
    uint32_t selector = byte_selector(threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int part = 0; part < kDepth / 16; ++part) {
        uint4 words = *reinterpret_cast<const uint4*>(codes + 8 * i * kRow + 16 * part);
        w[part][i] = decode_pair<T>(__byte_perm(words.x, words.y, selector), scales[i]);
        w[part][i + 2] = decode_pair<T>(__byte_perm(words.z, words.w, selector), scales[i]);
      }
    }
  }

 private:
  template <class T>
  __device__ static uint32_t decode_pair(uint32_t pair, float factor) {
    float2 values;
    if constexpr (kFp8) {
      values = fp8_pair(pair);
    } else {  // 2^23 + 128 + code, less that
      values.x = __uint_as_float(__byte_perm(pair ^ 0x8080u, 0x4b000000u, 0x7540)) - 8388736.0f;
      values.y = __uint_as_float(__byte_perm(pair ^ 0x8080u, 0x4b000000u, 0x7541)) - 8388736.0f;
    }
    return Pair<T>::of(__fmul_rn(values.x, factor), __fmul_rn(values.y, factor));
  }
};

// What lies where in a block's shared memory, for tiles of so many columns (rows of x) and stages of so many bytes of
// codes a row.
template <class Codes, int kColumns>
struct Places {
  static constexpr uint32_t kX = kColumns * kDepth * 2, kStage = kX + kRows * Codes::kRow;
  static constexpr uint32_t kStaging = kMultiplying / 4 * kPassedWords * 4, kBarriers = 256;
  static constexpr uint32_t kStages = (kSharedLimit - kStaging - kBarriers) / kStage;
  static constexpr uint32_t kShared = kStages * kStage + kStaging + kBarriers;
  static_assert(kStage % 1024 == 0 && kX % 1024 == 0 && kStages >= 3 && kStages * 16 <= kBarriers);

  uint32_t base;
  __device__ uint32_t stage(uint32_t i) const { return base + i * kStage; }
  __device__ uint32_t full(uint32_t i) const { return base + kStages * kStage + kStaging + i * 16; }
  __device__ uint32_t empty(uint32_t i) const { return full(i) + 8; }
};

struct Operands {
  CUtensorMap x, codes;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Of a warpgroup, which is not the block's barrier 0. Not by a branch for each: what follows would count as divergent.
__device__ inline void meet(uint32_t group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

template <class Codes, int kColumns>
__device__ void copy_tiles(const CodedArguments& p, const Operands& operands, Places<Codes, kColumns> at) {
  using P = Places<Codes, kColumns>;
  Turn<P::kStages> turn;
  for (int index = blockIdx.x; index < p.tile_rows * p.tile_columns; index += gridDim.x) {
    TileAt tile = tile_at(index, p.tile_rows, p.tile_columns);
    int row = tile.row * kRows, column = tile.column * kColumns;
    for (int step = 0; step < p.k / kDepth; ++step) {
      barrier_wait(at.empty(turn.stage), turn.parity ^ 1);
      barrier_expect(at.full(turn.stage), P::kStage);
      copy_box(at.stage(turn.stage), operands.x, step * kDepth, column, at.full(turn.stage));
      copy_box(at.stage(turn.stage) + P::kX, operands.codes, step * Codes::kRow, row, at.full(turn.stage));
      turn.next();
    }
  }
}

// Of one warpgroup. A thread finishes 8 neighbours of n, in two of each 32 tokens.
template <class T>
class Finisher {
 public:
  __device__ Finisher(const CodedArguments& p, float* staging) : p_(p), staging_(staging), thread_(threadIdx.x % 128) {}

  // Of 64 columns of the result from here on, in rows before `end`.
  __device__ void begin(int column, int end) {
    column_ = column + static_cast<int>(thread_ % 8) * 8;
    end_ = column_ < p_.n ? end : 0;
    if (end_ && p_.data.bias) load_eight(p_.data.bias, p_.finish.bias_type, column_, bias_);
  }

  struct Beside {
    int row;
    int64_t gate[2];
    Eight<T> residual[2];
  };
  // Of the 32 tokens from here on.
  __device__ void load(Beside& beside, int row) const {
    beside.row = row + static_cast<int>(thread_ / 8);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      int at = beside.row + 16 * i;
      if (at >= end_) continue;
      if (p_.data.gate) {
        int64_t gate[1];
        p_.finish.gates.offsets(static_cast<uint32_t>(at), gate);
        beside.gate[i] = gate[0];
      }
      if (p_.data.residual) {
        beside.residual[i] = Eight<T>::load(static_cast<const T*>(p_.data.residual) + int64_t{at} * p_.n + column_);
      }
    }
  }

  __device__ void stage(const float (&sums)[4], uint32_t eighth) const {
#pragma unroll
    for (uint32_t v = 0; v < 4; ++v) staging_[passed_value(thread_, eighth, v)] = sums[v];
  }
  // Of tokens whose sums are all staged, by threads that have met since.
  __device__ void finish(const Beside& beside) const {
    uint32_t odd = thread_ / 4 % 2;  // which half is read first, so that lanes keep out of each other's banks
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      float4 first = *reinterpret_cast<const float4*>(staging_ + passed_half(thread_, i, odd));
      float4 second = *reinterpret_cast<const float4*>(staging_ + passed_half(thread_, i, 1 - odd));
      float4 low = odd ? second : first, high = odd ? first : second;
      int row = beside.row + 16 * static_cast<int>(i);
      if (row >= end_) continue;
      float y[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      Finishing<8> with{
          .biased = p_.data.bias != nullptr, .gated = p_.data.gate != nullptr, .added = p_.data.residual != nullptr};
#pragma unroll
      for (int v = 0; v < 8; ++v) with.bias[v] = bias_[v];
      finish_eight<T>(y, with, static_cast<const T*>(p_.data.gate) + beside.gate[i] + column_, p_.gate_packs,
                      beside.residual[i], p_.finish.act,
                      static_cast<T*>(p_.data.out) + int64_t{row} * p_.finish.out_row + column_);
    }
  }

 private:
  const CodedArguments& p_;
  float* staging_;
  uint32_t thread_;
  int column_ = 0, end_ = 0;
  float bias_[8];
};

template <class T, int kColumns>
__device__ void finish_tile(const Finisher<T>& finisher, const float (&sums)[kColumns / 8][4],
                            typename Finisher<T>::Beside& beside, int row) {
  constexpr int kBlocks = (kColumns + 31) / 32;
#pragma unroll 1
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      if (i != block) continue;  // so that sums stay in registers
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (4 * i + j < kColumns / 8) finisher.stage(sums[4 * i + j], static_cast<uint32_t>(j));
      }
    }
    meet(threadIdx.x / 128);
    typename Finisher<T>::Beside next;
    finisher.load(next, row + 32 * (block + 1));
    finisher.finish(beside);
    meet(threadIdx.x / 128);
    beside = next;
  }
}

template <class T, class Codes, int kColumns>
__device__ void multiply_tiles(const CodedArguments& p, Places<Codes, kColumns> at, const uint8_t* shared,
                               float* staging) {
  using P = Places<Codes, kColumns>;
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int steps = p.k / kDepth, row_at = static_cast<int>(warp * 16 + lane / 4);
  Turn<P::kStages> turn;
  Codes codes(p.weight);
  Finisher<T> finisher(p, staging);
  float sums[kColumns / 8][4];
  uint32_t before = 0;
  auto release = [&](uint32_t stage) {
    if (lane == 0) barrier_arrive(at.empty(stage));
  };
  auto multiply = [&](int step, uint32_t(&w)[kDepth / 16][4], typename Codes::Factors& factors) {
    barrier_wait(at.full(turn.stage), turn.parity);
    __syncwarp();
    codes.template decode<T>(w, shared + turn.stage * P::kStage + P::kX + row_at * Codes::kRow, factors);
    if (step + 2 < steps) codes.load(factors, step + 2);
    uint64_t x = rows_descriptor(at.stage(turn.stage));
    wgmma_fence();
#pragma unroll
    for (uint32_t part = 0; part < kDepth / 16; ++part) {
      wgmma_16<T, kColumns>(sums, w[part], x + 2 * part, static_cast<uint32_t>(step) + part);
    }
    wgmma_commit();
    wgmma_wait<1>();
    if (step > 0) release(before);
    before = turn.stage;
    turn.next();
  };
  for (int index = blockIdx.x; index < p.tile_rows * p.tile_columns; index += gridDim.x) {
    TileAt tile = tile_at(index, p.tile_rows, p.tile_columns);
    int first = tile.row * kRows + row_at, last = p.n - 1;
    // What is decoded next must not be where products under way take theirs from: two sets, in turn.
    uint32_t even[kDepth / 16][4], odd[kDepth / 16][4];
    typename Codes::Factors even_factors, odd_factors;
    codes.begin_rows(p, {first < last ? first : last, first + 8 < last ? first + 8 : last});
    codes.load(even_factors, 0);
    if (steps > 1) codes.load(odd_factors, 1);
    int step = 0;
    for (; step + 1 < steps; step += 2) {
      multiply(step, even, even_factors);
      multiply(step + 1, odd, odd_factors);
    }
    if (step < steps) multiply(step, even, even_factors);
    int token = tile.column * kColumns, end = token + kColumns < p.m ? token + kColumns : p.m;
    typename Finisher<T>::Beside beside;
    finisher.begin(tile.row * kRows + static_cast<int>(warp / 4 * 64), end);
    finisher.load(beside, token);
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sums[j][i])::"memory");  // sums are read after the wait
    }
    release(before);
    finish_tile<T, kColumns>(finisher, sums, beside, token);
  }
}

#endif

template <class T, class Codes, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ CodedArguments p, const __grid_constant__ Operands operands) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  using P = Places<Codes, kColumns>;
  P at{shared_address(shared)};
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < P::kStages; ++i) {
      barrier_init(at.full(i), 1);
      barrier_init(at.empty(i), kMultiplying);
    }
    barriers_made();
  }
  __syncthreads();
  uint32_t warp = threadIdx.x / 32;
  if (warp >= kMultiplying) {
    give_registers<24>();
    if (threadIdx.x == kMultiplying * 32) copy_tiles<Codes, kColumns>(p, operands, at);
  } else {
    take_registers<240>();
    multiply_tiles<T, Codes, kColumns>(
        p, at, shared, reinterpret_cast<float*>(shared + P::kStages * P::kStage) + warp / 4 * kPassedWords);
  }
#endif
}

template <class T, class Codes, int kColumns>
void launch(cudaStream_t stream, const CodedArguments& arguments) {
  CodedArguments p = arguments;
  p.tile_rows = static_cast<int>(ceil_div(p.n, kRows));
  p.tile_columns = static_cast<int>(ceil_div(p.m, kColumns));
  Operands operands{tensor_map(p.x, 2, p.m, p.k, kColumns, kDepth),
                    tensor_map(p.weight.codes, 1, p.n, p.k / kDepth * Codes::kRow, kRows, Codes::kRow)};
  int blocks = std::min(p.tile_rows * p.tile_columns, device_limits().multiprocessors);
  product_kernel<T, Codes, kColumns>
      <<<dim3(static_cast<unsigned>(blocks)), kThreads, Places<Codes, kColumns>::kShared, stream>>>(p, operands);
  check(cudaGetLastError());
}

template <class T, class Codes, int kColumns>
CodedLaunch* prepare_kernel() {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(product_kernel<T, Codes, kColumns>),
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(Places<Codes, kColumns>::kShared)));
  return launch<T, Codes, kColumns>;
}

template <class T, class Codes>
CodedLaunch* prepare(const CodedArguments& arguments) {
  switch (wgmma_columns(arguments.n, arguments.m, device_limits().multiprocessors)) {
    case 144: return prepare_kernel<T, Codes, 144>();
    case 176: return prepare_kernel<T, Codes, 176>();
    case 208: return prepare_kernel<T, Codes, 208>();
    default: return prepare_kernel<T, Codes, 256>();
  }
}

template <class T>
CodedLaunch* prepare_format(QuantFormat format, const CodedArguments& arguments) {
  switch (format) {
    case QuantFormat::nvfp4: return prepare<T, Fp4Codes>(arguments);
    case QuantFormat::int8_weights: return prepare<T, ByteCodes<false>>(arguments);
    case QuantFormat::fp8_weights: return prepare<T, ByteCodes<true>>(arguments);
    default: return nullptr;
  }
}

}  // namespace

bool coded_wgmma_runs(const DeviceLimits& limits) {
#ifdef KINORA_SM90A
  return limits.major == 9 && limits.minor == 0 && limits.shared_bytes >= kSharedLimit && has_tensor_maps();
#else
  return false;
#endif
}

CodedLaunch* prepare_coded_wgmma(QuantFormat format, const CodedArguments& arguments) {
  return arguments.finish.dtype == DType::f16 ? prepare_format<__half>(format, arguments)
                                              : prepare_format<__nv_bfloat16>(format, arguments);
}

}  // namespace kinora::cuda
