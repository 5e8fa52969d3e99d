// Products of INT8 or FP8 codes by Hopper's wgmma. A block stays on its multiprocessor and makes tile after tile: one
// thread copies operands into stages of shared memory, two or three warpgroups multiply 64 rows each, and while they
// finish a tile's sums the next tile's operands are on their way. Scales and bias of a tile's columns come with its
// first stage, so that finishing waits for no memory. Clusters of two blocks, each of which fetches half of an operand
// for both, took a third longer.
#include "cuda/codes_finish.cuh"
#include "cuda/launch.cuh"
#include "cuda/tensor_map.h"
#include "cuda/wgmma.cuh"

namespace kinora::cuda {
namespace {

constexpr int kDepth = 128;  // bytes of a stage along k
constexpr uint32_t kSharedLimit = 227 * 1024;

// What lies where in a block's shared memory, for tiles of so many warpgroups and columns.
template <int kWarpgroups, int kColumns>
struct Places {
  static constexpr int kRows = 64 * kWarpgroups;
  static constexpr uint32_t kX = kRows * kDepth, kStage = kX + kColumns * kDepth, kBeside = kColumns * 8;
  static constexpr uint32_t kStaging = 4 * kWarpgroups * kStagedBytes, kBarriers = 256;
  static constexpr uint32_t kStages = (kSharedLimit - kStaging - kBarriers - kBeside) / (kStage + kBeside);
  // As many tiles can have been begun while one is not finished yet.
  static constexpr uint32_t kBesides = kStages + 1;
  static constexpr uint32_t kShared = kStages * kStage + kBesides * kBeside + kStaging + kBarriers;
  static_assert(kStage % 1024 == 0 && kStages >= 3 && kStages * 16 <= kBarriers);

  uint32_t base;
  __device__ uint32_t stage(uint32_t i) const { return base + i * kStage; }
  // The columns' scales in float, then their bias; of the first tile, the second, and so on.
  __device__ static uint32_t beside(uint32_t tile) { return staging(0) + kStaging + tile % kBesides * kBeside; }
  __device__ static uint32_t staging(uint32_t warp) { return kStages * kStage + warp * kStagedBytes; }
  __device__ uint32_t full(uint32_t i) const { return base + beside(0) + kBesides * kBeside + i * 16; }
  __device__ uint32_t empty(uint32_t i) const { return full(i) + 8; }
};

// A stage, and the parity of its full barrier's present phase.
template <uint32_t kStages>
struct Turn {
  uint32_t stage = 0, parity = 0;
  __device__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

struct Operands {
  CUtensorMap x, w;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Scales and bias of a tile's columns.
class ColumnsCopy {
 public:
  __device__ ColumnsCopy(const CodesArguments& p, int column, int columns) : p_(p), column_(column) {
    count_ = static_cast<uint32_t>(p.n - column < columns ? p.n - column : columns);
    bias_size_ = !p.data.bias ? 0 : p.finish.bias_type == DType::f32 ? 4 : 2;
  }
  __device__ uint32_t bytes() const { return count_ * (4 + bias_size_); }
  __device__ void copy(uint32_t to, uint32_t bias_at, uint32_t barrier) const {
    copy_bytes(to, p_.data.column_scale + column_, count_ * 4, barrier);
    if (!bias_size_) return;
    const uint8_t* bias = static_cast<const uint8_t*>(p_.data.bias) + int64_t{column_} * bias_size_;
    copy_bytes(to + bias_at, bias, count_ * bias_size_, barrier);
  }

 private:
  const CodesArguments& p_;
  int column_;
  uint32_t count_, bias_size_;
};

template <int kColumns, class P>
__device__ void copy_tiles(const CodesArguments& p, const Operands& operands, P at) {
  Turn<P::kStages> turn;
  uint32_t count = 0;
  for (int index = blockIdx.x; index < p.tile_rows * p.tile_columns; index += gridDim.x, ++count) {
    TileAt tile = tile_at(index, p.tile_rows, p.tile_columns);
    int row = tile.row * P::kRows, column = tile.column * kColumns;
    ColumnsCopy beside(p, column, kColumns);
    for (int k = 0; k < p.k; k += kDepth) {
      uint32_t full = at.full(turn.stage);
      barrier_wait(at.empty(turn.stage), turn.parity ^ 1);
      barrier_expect(full, P::kStage + (k == 0 ? beside.bytes() : 0));
      if (k == 0) beside.copy(at.base + P::beside(count), P::kBeside / 2, full);
      copy_box(at.stage(turn.stage), operands.x, k, row, full);
      copy_box(at.stage(turn.stage) + P::kX, operands.w, k, column, full);
      turn.next();
    }
  }
}

// The same where they have come to.
struct Columns {
  uint32_t scales, biases;  // in shared memory, of the lane's first pair
  DType bias_type;

  __device__ float2 scale(int j) const { return two_floats(scales + static_cast<uint32_t>(j) * 32); }
  __device__ float2 bias(int j) const {
    auto at = static_cast<uint32_t>(j);
    if (bias_type == DType::f32) return two_floats(biases + at * 32);
    uint32_t two;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(two) : "r"(biases + at * 16));
    return bias_type == DType::f16 ? Pair<__half>::floats(two) : Pair<__nv_bfloat16>::floats(two);
  }

 private:
  __device__ static float2 two_floats(uint32_t from) {
    float2 two;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(two.x), "=f"(two.y) : "r"(from));
    return two;
  }
};

// Straight on, without activation and gate: code that runs once a tile is quickest to fetch so.
template <bool kAdded, class T, class Sum, int kEighths>
__device__ void finish_plain(const SumsFinish<T>& finish, const Sum (&sums)[kEighths][4],
                             typename SumsFinish<T>::Beside& beside, const Columns& columns) {
#pragma unroll
  for (int block = 0; 4 * block < kEighths; ++block) {
    float values[4][4] = {};
#pragma unroll
    for (int j = 0; j < 4 && 4 * block + j < kEighths; ++j) {
#pragma unroll
      for (int v = 0; v < 4; ++v) values[j][v] = static_cast<float>(sums[4 * block + j][v]);
    }
    finish.template finish<false, kAdded>(values, beside, columns, block, Act::none);
  }
}

template <class T, class Sum, int kEighths>
__device__ void finish_with_all(const SumsFinish<T>& finish, const Sum (&sums)[kEighths][4],
                                typename SumsFinish<T>::Beside& beside, const Columns& columns, Act act) {
#pragma unroll 1
  for (int block = 0; 4 * block < kEighths; ++block) {
    float values[4][4];
    take_block(sums, block, values);
    finish.template finish<true, true>(values, beside, columns, block, act);
  }
}

template <class T, class Sum, int kColumns, class P>
__device__ void multiply_tiles(const CodesArguments& p, P at) {
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows_at = warp / 4 * 64, count = 0;
  DType bias_type = p.finish.bias_type;
  auto release = [&](uint32_t stage) {
    if (lane == 0) barrier_arrive(at.empty(stage));
  };
  Turn<P::kStages> turn;
  SumsFinish<T> finish(p, at.base + P::staging(warp));
  Sum sums[kColumns / 8][4];
  for (int index = blockIdx.x; index < p.tile_rows * p.tile_columns; index += gridDim.x, ++count) {
    uint32_t before = 0;
    for (int k = 0; k < p.k; k += kDepth) {
      barrier_wait(at.full(turn.stage), turn.parity);
      __syncwarp();
      uint64_t x = rows_descriptor(at.stage(turn.stage) + rows_at * kDepth);
      uint64_t w = rows_descriptor(at.stage(turn.stage) + P::kX);
      wgmma_fence();
#pragma unroll
      for (uint32_t part = 0; part < kDepth / 32; ++part) {
        wgmma_codes<Sum, kColumns>(sums, x + 2 * part, w + 2 * part, static_cast<uint32_t>(k) + part);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (k > 0) release(before);
      before = turn.stage;
      turn.next();
    }
    TileAt tile = tile_at(index, p.tile_rows, p.tile_columns);
    int column = tile.column * kColumns, end = column + kColumns < p.n ? column + kColumns : p.n;
    typename SumsFinish<T>::Beside beside;
    finish.begin(tile.row * P::kRows + static_cast<int>(rows_at + warp % 4 * 16), column, end);
    finish.load(beside, 0);
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) forget(sums[j][i]);  // they are read after the wait
    }
    release(before);
    uint32_t scales = at.base + P::beside(count), biases = scales + P::kBeside / 2;
    Columns columns{scales + lane % 4 * 8, biases + lane % 4 * (bias_type == DType::f32 ? 8 : 4), bias_type};
    if (p.finish.act != Act::none || p.data.gate) {
      finish_with_all(finish, sums, beside, columns, p.finish.act);
    } else if (p.data.residual) {
      finish_plain<true>(finish, sums, beside, columns);
    } else {
      finish_plain<false>(finish, sums, beside, columns);
    }
  }
}

#endif

template <class T, class Sum, int kWarpgroups, int kColumns>
__global__ void __launch_bounds__(kWarpgroups * 128 + 128, 1)
    product_kernel(const __grid_constant__ CodesArguments p, const __grid_constant__ Operands operands) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  using P = Places<kWarpgroups, kColumns>;
  constexpr uint32_t kMultiplying = 4 * kWarpgroups;  // warps; four more copy
  P at{shared_address(shared)};
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < P::kStages; ++i) {
      barrier_init(at.full(i), 1);
      barrier_init(at.empty(i), kMultiplying);
    }
    barriers_made();
  }
  __syncthreads();
  begin_kernel();
  if (threadIdx.x >= kMultiplying * 32) {
    give_registers<24>();
    if (threadIdx.x == kMultiplying * 32) copy_tiles<kColumns>(p, operands, at);
  } else {
    take_registers<kWarpgroups == 3 ? 160 : 240>();
    multiply_tiles<T, Sum, kColumns>(p, at);
  }
#endif
}

// Codes [rows, k] in boxes of box_rows rows and kDepth bytes.
CUtensorMap codes_map(const int8_t* codes, int rows, int k, int box_rows) {
  cuuint64_t extents[] = {static_cast<cuuint64_t>(k), static_cast<cuuint64_t>(rows)};
  cuuint64_t row_bytes[] = {static_cast<cuuint64_t>(k)};
  cuuint32_t box[] = {kDepth, static_cast<cuuint32_t>(box_rows)};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT8, codes, extents, row_bytes, box);
}

template <class T, class Sum, int kWarpgroups, int kColumns>
void enqueue(cudaStream_t stream, const CodesArguments& arguments) {
  using P = Places<kWarpgroups, kColumns>;
  CodesArguments p = arguments;
  p.tile_rows = static_cast<int>(ceil_div(p.m, P::kRows));
  p.tile_columns = static_cast<int>(ceil_div(p.n, kColumns));
  Operands operands{codes_map(p.x, p.m, p.k, P::kRows), codes_map(p.w, p.n, p.k, kColumns)};
  int blocks = std::min(p.tile_rows * p.tile_columns, device_limits().multiprocessors);
  start_kernel(product_kernel<T, Sum, kWarpgroups, kColumns>, static_cast<unsigned>(blocks), kWarpgroups * 128 + 128,
               P::kShared, stream, p, operands);
}

template <class T, class Sum, int kWarpgroups, int kColumns>
CodesLaunch* prepare_kernel() {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(product_kernel<T, Sum, kWarpgroups, kColumns>),
                             cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(Places<kWarpgroups, kColumns>::kShared)));
  return enqueue<T, Sum, kWarpgroups, kColumns>;
}

template <class T, class Sum>
CodesLaunch* prepare_tile(WgmmaTile tile) {
  switch (tile.warpgroups * 1000 + tile.columns) {
    case 3192: return prepare_kernel<T, Sum, 3, 192>();
    case 2256: return prepare_kernel<T, Sum, 2, 256>();
    case 2192: return prepare_kernel<T, Sum, 2, 192>();
    default: return prepare_kernel<T, Sum, 2, 144>();
  }
}

}  // namespace

bool codes_wgmma_runs(const DeviceLimits& limits) {
#ifdef KINORA_SM90A
  return limits.major == 9 && limits.minor == 0 && limits.shared_bytes >= kSharedLimit && makes_tensor_maps();
#else
  return false;
#endif
}

CodesLaunch* prepare_codes_wgmma(const CodesArguments& arguments) {
  WgmmaTile tile = wgmma_tile(arguments.m, arguments.n, arguments.k, device_limits().multiprocessors);
  return with_float(arguments.finish.dtype, [&]<class T>(T) -> CodesLaunch* {
    if (arguments.codes == DType::i8) return prepare_tile<T, int32_t>(tile);
    if constexpr (sizeof(T) == 4)
      return nullptr;
    else
      return prepare_tile<T, float>(tile);
  });
}

}  // namespace kinora::cuda
