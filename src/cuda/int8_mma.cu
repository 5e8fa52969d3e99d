// INT8 products by mma: m16n8k32 with int32 sums, operands by cp.async through stages of shared memory.
//
// With g = lane / 4 and c = lane % 4, a lane holds of A [16, 32] the words (g, 4c..), (g + 8, 4c..), (g, 4c + 16..),
// (g + 8, 4c + 16..), of B [32, 8] the words (4c.., g), (4c + 16.., g) along k: what ldmatrix gives of matrices of 8
// rows of 16 bytes.
#include "cuda/codes_finish.cuh"
#include "cuda/mma.cuh"

namespace kinora::cuda {
namespace {

constexpr int kTile = 128, kDepth = 64, kStages = 4, kThreads = 256;  // a tile has kTile rows and columns
constexpr uint32_t kOperand = kTile * kDepth, kStage = 2 * kOperand;
constexpr size_t kShared = size_t{kStages} * kStage;
static_assert(kThreads / 32 * kStagedBytes <= kShared);

__device__ inline void mma_s8(int32_t (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// What a thread brings of an operand [rows, k] to each stage: a unit of 16 bytes for each of its rows of the tile. What
// lies beyond the matrix is zeros.
class Loader {
 public:
  __device__ Loader(const int8_t* operand, int first, int rows, int k) : operand_(operand), k_(k) {
    uint32_t row = threadIdx.x / kUnits;
    unit_ = threadIdx.x % kUnits;
    left_ = rows - first - static_cast<int>(row);
    from_ = operand + int64_t{first + static_cast<int>(row)} * k + unit_ * 16;
    to_ = swizzled<kDepth>(row, unit_);
  }
  // The bytes from `at` on of each row.
  __device__ void load(uint32_t tile, int at) const {
    bool inside = at + static_cast<int>(unit_) * 16 < k_;
#pragma unroll
    for (int i = 0; i < kTile / kRows; ++i) {
      bool there = inside && i * kRows < left_;
      cp_async(tile + to_ + i * kRows * kDepth, there ? from_ + int64_t{i * kRows} * k_ + at : operand_, there);
    }
  }

 private:
  static constexpr int kUnits = kDepth / 16, kRows = kThreads / kUnits;
  static_assert(kRows % 8 == 0, "rows that far apart are permuted alike");
  const int8_t *operand_, *from_;
  int k_, left_;  // rows of the matrix from the thread's first one on
  uint32_t unit_, to_;
};

// Scales and bias of columns, from memory.
struct Columns {
  const CodesArguments& p;
  int column;

  __device__ int at(int j) const { return column + 8 * j + static_cast<int>(threadIdx.x) % 4 * 2; }
  __device__ float2 scale(int j) const {
    return at(j) < p.n ? *reinterpret_cast<const float2*>(p.data.column_scale + at(j)) : float2{};
  }
  __device__ float2 bias(int j) const {
    if (at(j) >= p.n) return {};
    auto load = [&](int i) { return load_float(p.data.bias, p.finish.bias_type, at(j) + i); };
    return {load(0), load(1)};
  }
};

// Eight warps, two along the rows of a tile and four along its columns, each with sums [64, 32].
template <class T>
__global__ void __launch_bounds__(kThreads, 2) product_kernel(const __grid_constant__ CodesArguments p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  TileAt tile = tile_at(static_cast<int>(blockIdx.x), p.tile_rows, p.tile_columns);
  int row = tile.row * kTile, column = tile.column * kTile, steps = (p.k + kDepth - 1) / kDepth;
  uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, base = shared_address(shared);
  uint32_t row_at = warp / 4 * 64, column_at = warp % 4 * 32;
  Loader x(p.x, row, p.m, p.k), w(p.w, column, p.n, p.k);
  auto load = [&](int step) {
    if (step < steps) {
      uint32_t to = base + static_cast<uint32_t>(step) % kStages * kStage;
      x.load(to, step * kDepth);
      w.load(to + kOperand, step * kDepth);
    }
    cp_async_commit();
  };
  for (int step = 0; step < kStages - 1; ++step) load(step);

  int32_t sums[4][4][4] = {};
  FragmentAt a_at = a_fragment(lane), b_at = b_fragment(lane);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    load(step + kStages - 1);
    uint32_t a_base = base + static_cast<uint32_t>(step) % kStages * kStage, b_base = a_base + kOperand;
#pragma unroll
    for (uint32_t part = 0; part < kDepth / 32; ++part) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        ldmatrix(a[i], a_base + swizzled<kDepth>(row_at + 16 * i + a_at.row, 2 * part + a_at.unit));
      }
#pragma unroll
      for (uint32_t j = 0; j < 2; ++j) {
        ldmatrix(b[j], b_base + swizzled<kDepth>(column_at + 16 * j + b_at.row, 2 * part + b_at.unit));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) mma_s8(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  cp_async_wait<0>();
  __syncthreads();

  SumsFinish<T> finish(p, base + warp * kStagedBytes);
  column += static_cast<int>(column_at);
  Columns columns{p, column};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    typename SumsFinish<T>::Beside beside;
    finish.begin(row + static_cast<int>(row_at) + 16 * i, column, p.n);
    finish.load(beside, 0);
    float values[4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int v = 0; v < 4; ++v) values[j][v] = static_cast<float>(sums[i][j][v]);
    }
    finish.template finish<true, true>(values, beside, columns, 0, p.finish.act);
  }
}

template <class T>
void launch(cudaStream_t stream, const CodesArguments& arguments) {
  CodesArguments p = arguments;
  p.tile_rows = static_cast<int>(ceil_div(p.m, kTile));
  p.tile_columns = static_cast<int>(ceil_div(p.n, kTile));
  product_kernel<T><<<static_cast<unsigned>(p.tile_rows * p.tile_columns), kThreads, kShared, stream>>>(p);
  check(cudaGetLastError());
}

}  // namespace

CodesLaunch* prepare_int8_mma(const CodesArguments& arguments) {
  return with_float(arguments.finish.dtype, [&]<class T>(T) -> CodesLaunch* {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(product_kernel<T>),
                               cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kShared)));
    return launch<T>;
  });
}

}  // namespace kinora::cuda
