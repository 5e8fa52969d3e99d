// INT8 products by Hopper's wgmma. A block stays on its multiprocessor and makes tile after tile: one thread copies
// operands into stages of shared memory, two warpgroups multiply 64 rows each, and while they finish a tile's sums the
// next tile's operands are on their way. Clusters of two blocks, each of which fetches half of the weight's rows for
// both, took a third longer.
#include "cuda/int8_finish.cuh"
#include "cuda/tensor_map.h"
#include "cuda/wgmma.cuh"

namespace kinora::cuda {
namespace {

constexpr int kRows = 128, kDepth = 128;                             // of a tile; bytes of a stage along k
constexpr int kMultiplying = 8, kThreads = (kMultiplying + 4) * 32;  // warps that multiply, and a warpgroup that copies
constexpr uint32_t kSharedLimit = 227 * 1024;

// What lies where in a block's shared memory, for tiles of so many columns.
template <int kColumns>
struct Places {
  static constexpr uint32_t kX = kRows * kDepth, kStage = kX + kColumns * kDepth;
  static constexpr uint32_t kStaging = kMultiplying * kStagedWords * 4, kBarriers = 256;
  static constexpr uint32_t kStages = (kSharedLimit - kStaging - kBarriers) / kStage;
  static constexpr uint32_t kShared = kStages * kStage + kStaging + kBarriers;
  static_assert(kStage % 1024 == 0 && kStages >= 3 && kStages * 16 <= kBarriers);

  uint32_t base;
  __device__ uint32_t stage(uint32_t i) const { return base + i * kStage; }
  __device__ uint32_t full(uint32_t i) const { return base + kStages * kStage + kStaging + i * 16; }
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

template <int kColumns>
__device__ void copy_tiles(const Int8Arguments& p, const Operands& operands, Places<kColumns> at) {
  using P = Places<kColumns>;
  Turn<P::kStages> turn;
  for (int index = blockIdx.x; index < p.tile_rows * p.tile_columns; index += gridDim.x) {
    TileAt tile = tile_at(index, p.tile_rows, p.tile_columns);
    int row = tile.row * kRows, column = tile.column * kColumns;
    for (int k = 0; k < p.k; k += kDepth) {
      barrier_wait(at.empty(turn.stage), turn.parity ^ 1);
      barrier_expect(at.full(turn.stage), P::kStage);
      copy_box(at.stage(turn.stage), operands.x, k, row, at.full(turn.stage));
      copy_box(at.stage(turn.stage) + P::kX, operands.w, k, column, at.full(turn.stage));
      turn.next();
    }
  }
}

template <class T, int kColumns>
__device__ void finish_tile(const SumsFinish<T>& finish, int32_t* staging, const int32_t (&sums)[kColumns / 8][4],
                            typename SumsFinish<T>::Beside& beside, int column, int end) {
  constexpr int kBlocks = (kColumns + 31) / 32;
#pragma unroll 1
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      if (i != block) continue;  // so that sums stay in registers
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (4 * i + j < kColumns / 8) finish.stage(staging, sums[4 * i + j], static_cast<uint32_t>(j));
      }
    }
    __syncwarp();
    typename SumsFinish<T>::Beside next;
    finish.load(next, column + 32 * (block + 1), end);
    finish.finish(staging, beside);
    __syncwarp();
    beside = next;
  }
}

template <class T, int kColumns>
__device__ void multiply_tiles(const Int8Arguments& p, Places<kColumns> at, int32_t* staging) {
  using P = Places<kColumns>;
  uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows_at = warp / 4 * 64;
  auto release = [&](uint32_t stage) {
    if (lane == 0) barrier_arrive(at.empty(stage));
  };
  Turn<P::kStages> turn;
  SumsFinish<T> finish(p);
  int32_t sums[kColumns / 8][4];
  for (int index = blockIdx.x; index < p.tile_rows * p.tile_columns; index += gridDim.x) {
    uint32_t before = 0;
    for (int k = 0; k < p.k; k += kDepth) {
      barrier_wait(at.full(turn.stage), turn.parity);
      __syncwarp();
      uint64_t x = rows_descriptor(at.stage(turn.stage) + rows_at * kDepth);
      uint64_t w = rows_descriptor(at.stage(turn.stage) + P::kX);
      wgmma_fence();
#pragma unroll
      for (uint32_t part = 0; part < kDepth / 32; ++part) {
        wgmma_s8<kColumns>(sums, x + 2 * part, w + 2 * part, static_cast<uint32_t>(k) + part);
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
    finish.begin_rows(tile.row * kRows + static_cast<int>(rows_at + warp % 4 * 16));
    finish.load(beside, column, end);
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(sums[j][i])::"memory");  // sums are read after the wait
    }
    release(before);
    finish_tile<T, kColumns>(finish, staging, sums, beside, column, end);
  }
}

#endif

template <class T, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ Int8Arguments p, const __grid_constant__ Operands operands) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t shared[];
  using P = Places<kColumns>;
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
    if (threadIdx.x == kMultiplying * 32) copy_tiles<kColumns>(p, operands, at);
  } else {
    take_registers<240>();
    multiply_tiles<T, kColumns>(p, at,
                                reinterpret_cast<int32_t*>(shared + P::kStages * P::kStage) + warp * kStagedWords);
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

template <class T, int kColumns>
void launch(cudaStream_t stream, const Int8Arguments& arguments) {
  Int8Arguments p = arguments;
  p.tile_rows = static_cast<int>(ceil_div(p.m, kRows));
  p.tile_columns = static_cast<int>(ceil_div(p.n, kColumns));
  Operands operands{codes_map(p.x, p.m, p.k, kRows), codes_map(p.w, p.n, p.k, kColumns)};
  int blocks = std::min(p.tile_rows * p.tile_columns, device_limits().multiprocessors);
  product_kernel<T, kColumns>
      <<<dim3(static_cast<unsigned>(blocks)), kThreads, Places<kColumns>::kShared, stream>>>(p, operands);
  check(cudaGetLastError());
}

template <class T, int kColumns>
Int8Launch* prepare_kernel() {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(product_kernel<T, kColumns>),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(Places<kColumns>::kShared)));
  return launch<T, kColumns>;
}

}  // namespace

bool int8_wgmma_runs(const DeviceLimits& limits) {
#ifdef KINORA_SM90A
  return limits.major == 9 && limits.minor == 0 && limits.shared_bytes >= kSharedLimit && makes_tensor_maps();
#else
  return false;
#endif
}

Int8Launch* prepare_int8_wgmma(const Int8Arguments& arguments) {
  return with_float(arguments.finish.dtype, [&]<class T>(T) -> Int8Launch* {
    switch (wgmma_columns(arguments.m, arguments.n, device_limits().multiprocessors)) {
      case 144: return prepare_kernel<T, 144>();
      case 176: return prepare_kernel<T, 176>();
      case 208: return prepare_kernel<T, 208>();
      default: return prepare_kernel<T, 256>();
    }
  });
}

}  // namespace kinora::cuda
