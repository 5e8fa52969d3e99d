// Our own products of codes: where their parts lie, found out on the host, and on the GPU, of INT8, the bits of
// cuBLASLt's sums finished by a kernel of their own; FP8's sums are within what their tensor cores keep.
#include "cuda/codes_product.h"

#include <array>
#include <cstring>
#include <set>

#include "cuda/codes_tiles.h"
#include "cuda_support.h"
#include "ops/quantize.h"
#include "ops/shaping.h"

namespace kinora::test {
namespace {

using cuda::CodesKernel;

TEST(CodesTiles, EachTileHasOneNumber) {
  for (auto [rows, columns] : {std::array{1, 1}, {1, 7}, {16, 9}, {17, 27}, {69, 48}, {598, 3}}) {
    std::set<std::pair<int, int>> seen;
    for (int i = 0; i < rows * columns; ++i) {
      cuda::TileAt at = cuda::tile_at(i, rows, columns);
      EXPECT_TRUE(at.row >= 0 && at.row < rows && at.column >= 0 && at.column < columns) << i;
      seen.insert({at.row, at.column});
    }
    EXPECT_EQ(seen.size(), static_cast<size_t>(rows * columns));
  }
}

TEST(CodesTiles, FillTheLastWave) {
  auto tile = [](int m, int n, int k) {
    cuda::WgmmaTile best = cuda::wgmma_tile(m, n, k, 132);
    return std::pair{best.rows(), best.columns};
  };
  EXPECT_EQ(tile(2048, 2240, 2240), std::pair(192, 192));
  EXPECT_EQ(tile(2048, 1152, 1152), std::pair(128, 144));
  EXPECT_EQ(tile(76544, 21504, 3072), std::pair(192, 192));
  EXPECT_EQ(tile(1, 8, 16), std::pair(128, 144));
}

// Lanes that access 16 (4) bytes do so in groups of 8 (32): within each, no two may meet in a bank.
void expect_no_conflicts(const std::vector<uint32_t>& addresses, uint32_t bytes, const std::string& what) {
  for (size_t first = 0; first < addresses.size(); first += 128 / bytes) {
    std::set<uint32_t> banks;
    for (size_t i = first; i < first + 128 / bytes; ++i) {
      EXPECT_EQ(addresses[i] % bytes, 0u) << what;
      for (uint32_t word = 0; word < bytes / 4; ++word) banks.insert((addresses[i] / 4 + word) % 32);
    }
    EXPECT_EQ(banks.size(), 32u) << what << ", lanes from " << first;
  }
}

template <uint32_t kRow>
void expect_permuted() {
  std::set<uint32_t> seen;
  for (uint32_t row = 0; row < 128; ++row) {
    for (uint32_t unit = 0; unit < kRow / 16; ++unit) seen.insert(cuda::swizzled<kRow>(row, unit));
  }
  EXPECT_EQ(seen.size(), 128 * kRow / 16);
  EXPECT_EQ(*seen.rbegin(), 127 * kRow + kRow - 16);
  for (uint32_t part = 0; part < kRow / 32; ++part) {
    for (bool a : {true, false}) {
      std::vector<uint32_t> addresses;
      for (uint32_t lane = 0; lane < 32; ++lane) {
        cuda::FragmentAt at = a ? cuda::a_fragment(lane) : cuda::b_fragment(lane);
        addresses.push_back(cuda::swizzled<kRow>(at.row, 2 * part + at.unit));
      }
      expect_no_conflicts(addresses, 16, "ldmatrix of rows of " + std::to_string(kRow));
    }
  }
}

TEST(CodesTiles, RowsLieInAllBanks) {
  expect_permuted<64>();
  expect_permuted<128>();
}

// With rows of 128 bytes: bits 4 to 6 of an address within 1024 bytes are those of the unit exclusive-or bits 7 to 9.
TEST(CodesTiles, LongRowsLieAsTensorMapsPutThem) {
  for (uint32_t row = 0; row < 256; ++row) {
    for (uint32_t unit = 0; unit < 8; ++unit) {
      uint32_t plain = row * 128 + unit * 16;
      EXPECT_EQ(cuda::swizzled<128>(row, unit), plain ^ (plain >> 7 & 7) << 4);
    }
  }
}

// A product [16, 32] · [32, 16] as the tensor cores take it: registers from ldmatrix, sums from mma's definition.
TEST(CodesTiles, FragmentsMeetAsMmaAsks) {
  constexpr uint32_t kRow = 64;
  auto code = [](uint32_t row, uint32_t at) { return static_cast<int8_t>((row * 37 + at * 11 + 5) % 251); };
  std::vector<int8_t> tile(16 * kRow);
  for (uint32_t row = 0; row < 16; ++row) {
    for (uint32_t at = 0; at < kRow; ++at) tile[cuda::swizzled<kRow>(row, at / 16) + at % 16] = code(row, at);
  }
  for (uint32_t part = 0; part < kRow / 32; ++part) {
    // Register r of a lane: four bytes at lane % 4 of the row that lane r * 8 + lane / 4 names.
    auto loaded = [&](bool a, uint32_t lane, uint32_t r, uint32_t byte) {
      uint32_t from = r * 8 + lane / 4;
      cuda::FragmentAt at = a ? cuda::a_fragment(from) : cuda::b_fragment(from);
      return tile[cuda::swizzled<kRow>(at.row, 2 * part + at.unit) + lane % 4 * 4 + byte];
    };
    for (uint32_t lane = 0; lane < 32; ++lane) {
      for (uint32_t byte = 0; byte < 4; ++byte) {
        for (uint32_t r = 0; r < 4; ++r) {
          uint32_t k = part * 32 + lane % 4 * 4 + byte;
          EXPECT_EQ(loaded(true, lane, r, byte), code(lane / 4 + r % 2 * 8, k + r / 2 * 16));
          // Registers 2j and 2j + 1 are the two words of the columns from 8j on.
          EXPECT_EQ(loaded(false, lane, r, byte), code(lane / 4 + r / 2 * 8, k + r % 2 * 16));
        }
      }
    }
  }
}

TEST(CodesTiles, ResultsPassThroughSharedMemory) {
  std::vector<int> halves(cuda::kStagedBytes / 2, -1);
  for (uint32_t i = 0; i < 2; ++i) {
    for (uint32_t j = 0; j < 4; ++j) {
      std::vector<uint32_t> writes;
      for (uint32_t lane = 0; lane < 32; ++lane) {
        writes.push_back(cuda::staged_pair(lane, j, i));
        for (uint32_t pair = 0; pair < 2; ++pair) {
          int& half = halves[writes.back() / 2 + pair];
          EXPECT_EQ(half, -1);
          half = static_cast<int>((lane / 4 + 8 * i) * 32 + 8 * j + lane % 4 * 2 + pair);
        }
      }
      expect_no_conflicts(writes, 4, "pairs");
    }
  }
  for (uint32_t i = 0; i < 2; ++i) {
    std::vector<uint32_t> reads;
    for (uint32_t lane = 0; lane < 32; ++lane) {
      reads.push_back(cuda::staged_eight(lane, i));
      for (uint32_t v = 0; v < 8; ++v) {
        EXPECT_EQ(halves[reads.back() / 2 + v], static_cast<int>((lane / 4 + 8 * i) * 32 + lane % 4 * 8 + v));
      }
    }
    expect_no_conflicts(reads, 16, "eights");
  }
}

// The kernel that products are to be made by, until the end of the scope.
struct With {
  explicit With(CodesKernel kernel) { cuda::codes_kernel_override = kernel; }
  ~With() { cuda::codes_kernel_override.reset(); }
  With(const With&) = delete;
  With& operator=(const With&) = delete;
};

struct ProductCase {
  int64_t items = 1, rows, n, k;
  DType dtype = DType::bf16;
  QuantFormat format = QuantFormat::int8;
  std::string act = "none";
  std::optional<DType> bias = {};
  bool gate = false, residual = false, strided = false, odd_gate = false;

  std::string name() const {
    std::string text = std::to_string(items) + " x " + std::to_string(rows) + ", " + std::to_string(n) + ", " +
                       std::to_string(k) + " " + std::string(dtype_name(dtype)) + " " + act;
    if (bias) text += " bias " + std::string(dtype_name(*bias));
    for (auto [flag, what] :
         {std::pair{gate, " gate"}, {residual, " residual"}, {strided, " strided"}, {odd_gate, " odd gate"}}) {
      if (flag) text += what;
    }
    return text;
  }

  Tensor run(CodesKernel kernel) const {
    With with(kernel);
    Graph graph;
    std::map<std::string, Tensor> feed;
    uint64_t seed = 1;
    auto input = [&](const char* what, const Shape& shape) {
      feed[what] = random_tensor(shape, ++seed, -2, 2).to(dtype);
      return graph.input(what, shape, dtype);
    };
    Value x = quantize_rows(input("x", {items, rows, k}), format);
    auto product = [&](const std::string& what, int64_t width, const QuantizedFinish& finish) {
      QuantizedMatrix q = quantize_matrix(random_tensor({width, k}, ++seed), format);
      QuantizedWeight weight{
          format, graph.parameter(what + "codes", q.codes), graph.parameter(what + "scale", q.scale), {}};
      return quantized_linear_rows(x, weight, finish, {items, rows}, dtype);
    };
    QuantizedFinish finish{.act = act};
    if (bias) finish.bias = graph.parameter("bias", random_tensor({n}, ++seed).to(*bias));
    if (gate) finish.gate = input("gate", {items, 1, n});
    if (odd_gate) finish.gate = slice(input("gate", {1, 1, n + 3}), 2, 3, n + 3);
    if (residual) finish.residual = input("residual", {items, rows, n});
    Value y = product("w", n, finish);
    // Columns of a wider result, which begin at a multiple of 256 bytes.
    if (strided) y = concat({product("v", 256, {}), y}, 2);
    graph.output("y", y);
    return run_on_gpu(graph, feed).at("y");
  }

  void expect_cublas_bits(CodesKernel kernel) const {
    {
      With with(kernel);
      EXPECT_TRUE(cuda::CodesProduct(code_type(format), items * rows, n, k, {.dtype = dtype}).available()) << name();
    }
    Tensor got = run(kernel), expected = run(CodesKernel::none);
    ASSERT_EQ(got.bytes(), expected.bytes());
    if (std::memcmp(got.raw(), expected.raw(), got.bytes()) == 0) return;
    Tensor a = got.to(DType::f32), b = expected.to(DType::f32);
    int64_t others = 0, first = -1;
    for (int64_t i = a.numel(); i-- > 0;) {
      if (a.data<float>()[i] == b.data<float>()[i]) continue;
      ++others, first = i;
    }
    ADD_FAILURE() << name() << ": " << others << " of " << a.numel() << " differ, the first in row "
                  << first / a.shape()[-1] << ", column " << first % a.shape()[-1] << ": " << a.data<float>()[first]
                  << " instead of " << b.data<float>()[first];
  }
};

class CudaCodesProduct : public testing::TestWithParam<CodesKernel> {
 protected:
  void SetUp() override {
    KINORA_NEEDS_GPU();
    if (!cuda::codes_kernel_runs(GetParam(), DType::i8)) GTEST_SKIP() << "this GPU does not run that kernel";
  }
};

TEST_P(CudaCodesProduct, GivesCublasBitsInEveryShape) {
  for (int64_t rows : {1, 77, 300, 2056}) {
    for (int64_t n : {8, 72, 2240}) {
      for (int64_t k : {16, 48, 2240}) {
        ProductCase{.rows = rows, .n = n, .k = k, .bias = DType::f32}.expect_cublas_bits(GetParam());
      }
    }
  }
}

TEST_P(CudaCodesProduct, GivesCublasBitsWithEveryFinish) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const char* act : {"none", "relu", "silu", "gelu_tanh"}) {
      for (std::optional<DType> bias : {std::optional<DType>(), std::optional(DType::f32), std::optional(dtype)}) {
        for (int more = 0; more < 4; ++more) {
          ProductCase{.items = 3,
                      .rows = 67,
                      .n = 136,
                      .k = 144,
                      .dtype = dtype,
                      .act = act,
                      .bias = bias,
                      .gate = more % 2 == 1,
                      .residual = more >= 2}
              .expect_cublas_bits(GetParam());
        }
      }
    }
  }
}

TEST_P(CudaCodesProduct, WritesAmongOtherColumns) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (int64_t n : {40, 1152}) {
      ProductCase{.items = 2, .rows = 150, .n = n, .k = 272, .dtype = dtype, .residual = true, .strided = true}
          .expect_cublas_bits(GetParam());
    }
    ProductCase{.rows = 90, .n = 72, .k = 64, .dtype = dtype, .odd_gate = true}.expect_cublas_bits(GetParam());
  }
}

// Of the models: several tiles for each block, sums over many stages.
TEST_P(CudaCodesProduct, GivesCublasBitsAtTheModelsSizes) {
  ProductCase{.items = 2, .rows = 1024, .n = 6720, .k = 2240}.expect_cublas_bits(GetParam());
  ProductCase{.items = 2, .rows = 1024, .n = 11200, .k = 2240, .act = "silu", .bias = DType::bf16}.expect_cublas_bits(
      GetParam());
  ProductCase{.items = 2, .rows = 1024, .n = 2240, .k = 5600, .gate = true, .residual = true}.expect_cublas_bits(
      GetParam());
  ProductCase{.items = 1, .rows = 2207, .n = 9216, .k = 3072, .act = "gelu_tanh", .bias = DType::bf16}
      .expect_cublas_bits(GetParam());
}

// The product for each number of rows may be made by either.
TEST(CudaCodesProductFp8, GivesCublasBits) {
  KINORA_NEEDS_GPU();
  if (!cuda::codes_kernel_runs(CodesKernel::wgmma, DType::f8_e4m3)) GTEST_SKIP() << "this GPU does not run that kernel";
  for (ProductCase c :
       {ProductCase{.rows = 77, .n = 72, .k = 48}, ProductCase{.rows = 300, .n = 200, .k = 784},
        ProductCase{.rows = 2056, .n = 2240, .k = 2240}, ProductCase{.items = 2, .rows = 1024, .n = 2240, .k = 5600},
        ProductCase{.rows = 2207, .n = 9216, .k = 3072}}) {
    c.format = QuantFormat::fp8;
    for (DType dtype : {DType::bf16, DType::f16}) {
      c.dtype = dtype;
      for (int more = 0; more < 4; ++more) {
        c.residual = more >= 2;
        c.bias.reset();
        if (more % 2) c.bias = dtype;
        c.expect_cublas_bits(CodesKernel::wgmma);
      }
    }
  }
}

// Whatever tiles a product is made of.
TEST(CudaCodesProductFp8, RowsDoNotDependOnOthers) {
  KINORA_NEEDS_GPU();
  if (!cuda::codes_kernel_runs(CodesKernel::wgmma, DType::f8_e4m3)) GTEST_SKIP() << "this GPU does not run that kernel";
  CodesKernel kernel = CodesKernel::wgmma;
  ProductCase many{.rows = 2056, .n = 2240, .k = 1120, .bias = DType::bf16}, few = many;
  many.format = few.format = QuantFormat::fp8;
  few.rows = 100;
  ASSERT_NE(cuda::wgmma_tile(2056, 2240, 1120, 132).columns, cuda::wgmma_tile(100, 2240, 1120, 132).columns);
  Tensor all = many.run(kernel), some = few.run(kernel);
  EXPECT_EQ(std::memcmp(all.raw(), some.raw(), some.bytes()), 0);
}

std::string kernel_name(const testing::TestParamInfo<CodesKernel>& kernel) {
  constexpr const char* kNames[] = {"none", "mma", "wgmma"};
  return kNames[static_cast<size_t>(kernel.param)];
}
INSTANTIATE_TEST_SUITE_P(Kernels, CudaCodesProduct, testing::Values(CodesKernel::mma, CodesKernel::wgmma), kernel_name);

}  // namespace
}  // namespace kinora::test
