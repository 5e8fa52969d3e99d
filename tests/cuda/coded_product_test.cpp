// Products whose weights are decoded in registers: where their parts lie, found out on the host, and on the GPU the
// numbers of Decoder and sums that are exact in any order.
#include "cuda/coded_product.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <set>

#include "cuda/coded_tiles.h"
#include "cuda_support.h"
#include "ops/quantize.h"
#include "ops/shaping.h"

namespace kinora::test {
namespace {

// The instruction: four bytes of the eight that the selector's digits name.
uint32_t byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    uint32_t byte = selector >> (4 * i) & 7;
    result |= ((byte < 4 ? low : high) >> (8 * (byte % 4)) & 0xffu) << (8 * i);
  }
  return result;
}

float half_value(uint32_t bits) {
  f16 half;
  half.bits = static_cast<uint16_t>(bits);
  return static_cast<float>(half);
}

// Every code in every place, as the lane that needs it decodes it.
TEST(CodedTiles, FourBitsBecomeTheValuesOfALane) {
  constexpr uint8_t kOne = 0x38;  // as E4M3
  for (uint32_t shift = 0; shift < 16; ++shift) {
    std::array<uint8_t, 8> codes{};
    for (uint32_t j = 0; j < 16; ++j) codes[j / 2] |= static_cast<uint8_t>((j * 5 + shift) % 16 << (4 * (j % 2)));
    float expected[16];
    dequantize_row({QuantFormat::nvfp4, codes.data(), &kOne, 1.0f, 16}, 0, 0, 16, expected);
    uint32_t words[2];
    std::memcpy(words, codes.data(), sizeof words);
    for (uint32_t c = 0; c < 4; ++c) {
      uint32_t bytes = byte_perm(words[0], words[1], cuda::fp4_selector(c));
      uint32_t even = cuda::fp4_lower(bytes), odd = cuda::fp4_upper(bytes);
      EXPECT_EQ(half_value(even) * 0x1p14f, expected[2 * c]);
      EXPECT_EQ(half_value(odd) * 0x1p14f, expected[2 * c + 1]);
      EXPECT_EQ(half_value(even >> 16) * 0x1p14f, expected[2 * c + 8]);
      EXPECT_EQ(half_value(odd >> 16) * 0x1p14f, expected[2 * c + 9]);
    }
  }
}

TEST(CodedTiles, BytesBecomeTheValuesOfALane) {
  for (uint32_t c = 0; c < 4; ++c) {
    uint32_t pair = byte_perm(0x13121110, 0x17161514, cuda::byte_selector(c)) & 0xffffu;
    EXPECT_EQ(pair, (0x10 + 2 * c) | (0x11 + 2 * c) << 8);
  }
}

// Lanes that access 16 (4) bytes do so in groups of 8 (32): within each, no two may meet in a bank.
void expect_no_conflicts(const std::vector<uint32_t>& words, uint32_t each, const char* what) {
  for (size_t first = 0; first < words.size(); first += 32 / each) {
    std::set<uint32_t> banks;
    for (size_t i = first; i < first + 32 / each; ++i) {
      EXPECT_EQ(words[i] % each, 0u) << what;
      for (uint32_t word = 0; word < each; ++word) banks.insert((words[i] + word) % 32);
    }
    EXPECT_EQ(banks.size(), 32u) << what << ", threads from " << first;
  }
}

TEST(CodedTiles, SumsPassThroughSharedMemory) {
  std::vector<int> words(cuda::kPassedWords, -1);
  for (uint32_t eighth = 0; eighth < 4; ++eighth) {
    for (uint32_t v = 0; v < 4; ++v) {
      std::vector<uint32_t> writes;
      for (uint32_t thread = 0; thread < 128; ++thread) {
        uint32_t token = 8 * eighth + thread % 4 * 2 + v % 2, n = thread / 32 * 16 + thread % 32 / 4 + v / 2 * 8;
        uint32_t at = cuda::passed_value(thread, eighth, v);
        ASSERT_LT(at, words.size());
        EXPECT_EQ(words[at], -1);
        words[at] = static_cast<int>(token * 64 + n);
        writes.push_back(at);
      }
      expect_no_conflicts(writes, 1, "writes");
    }
  }
  for (uint32_t i = 0; i < 2; ++i) {
    std::vector<uint32_t> reads;
    for (uint32_t thread = 0; thread < 128; ++thread) {
      reads.push_back(cuda::passed_half(thread, i, thread / 4 % 2));
      for (uint32_t v = 0; v < 8; ++v) {
        uint32_t token = thread / 8 + 16 * i, n = thread % 8 * 8 + v;
        EXPECT_EQ(words[cuda::passed_half(thread, i, v / 4) + v % 4], static_cast<int>(token * 64 + n));
      }
    }
    expect_no_conflicts(reads, 4, "reads");
  }
}

// Whether weights are decoded in registers, until the end of the scope.
struct Fused {
  explicit Fused(bool fused) { cuda::coded_product_override = fused; }
  ~Fused() { cuda::coded_product_override.reset(); }
  Fused(const Fused&) = delete;
  Fused& operator=(const Fused&) = delete;
};

constexpr QuantFormat kFormats[] = {QuantFormat::nvfp4, QuantFormat::int8_weights, QuantFormat::fp8_weights};
constexpr DType kTypes[] = {DType::bf16, DType::f16};

// Whole numbers of -most to most.
Tensor whole(const Shape& shape, uint64_t seed, int most) {
  Tensor x = random_tensor(shape, seed, 0, static_cast<float>(2 * most + 1));
  for (int64_t i = 0; i < x.numel(); ++i) {
    x.data<float>()[i] =
        std::min(std::floor(x.data<float>()[i]), static_cast<float>(2 * most)) - static_cast<float>(most);
  }
  return x;
}

// Few bits in each value and scales that are powers of two, so that sums are exact: of many values with small whole
// numbers in float32, of two values in 16 bits.
QuantizedMatrix exact_weight(QuantFormat format, int64_t n, int64_t k, uint64_t seed) {
  Shape shape{n, k};
  QuantizedMatrix q{
      Tensor(code_shape(format, shape), code_type(format)), Tensor(scale_shape(format, shape), scale_type(format)), {}};
  Tensor drawn = random_tensor({q.codes.numel()}, seed, 0, 256),
         scales = random_tensor({q.scale.numel()}, ++seed, 0, 3);
  auto* codes = static_cast<uint8_t*>(q.codes.raw());
  for (int64_t i = 0; i < q.codes.numel(); ++i) {
    auto bits = static_cast<uint32_t>(drawn.data<float>()[i]);
    uint32_t code = bits;
    if (format == QuantFormat::int8_weights) code = bits % 15 - 7;
    if (format == QuantFormat::fp8_weights) code = (bits & 0x80u) | (0x30u + bits % 24);  // ±0.5 to ±3.75
    codes[i] = static_cast<uint8_t>(code);
  }
  for (int64_t i = 0; i < q.scale.numel(); ++i) {
    auto power = static_cast<int>(scales.data<float>()[i]);
    if (format == QuantFormat::nvfp4) {
      static_cast<uint8_t*>(q.scale.raw())[i] = static_cast<uint8_t>(0x30 + 8 * power);  // 0.5, 1, 2
    } else {
      q.scale.data<float>()[i] = std::ldexp(1.0f, power - 3);
    }
  }
  if (format == QuantFormat::nvfp4) {
    q.scale_2 = Tensor({}, DType::f32);
    q.scale_2.data<float>()[0] = 0.125f;
  }
  return q;
}

QuantizedWeight parameters(Graph& graph, QuantFormat format, const QuantizedMatrix& q, const std::string& name = "w") {
  QuantizedWeight weight{
      format, graph.parameter(name + "codes", q.codes), graph.parameter(name + "scale", q.scale), {}};
  if (q.scale_2.defined()) weight.scale_2 = graph.parameter(name + "scale_2", q.scale_2);
  return weight;
}

void expect_same(const Tensor& got, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(got.bytes(), expected.bytes()) << what;
  if (std::memcmp(got.raw(), expected.raw(), got.bytes()) == 0) return;
  Tensor a = got.to(DType::f32), b = expected.to(DType::f32);
  int64_t others = 0, first = -1;
  for (int64_t i = a.numel(); i-- > 0;) {
    if (a.data<float>()[i] == b.data<float>()[i]) continue;
    ++others, first = i;
  }
  if (first < 0) return;  // zeros of other signs
  ADD_FAILURE() << what << ": " << others << " of " << a.numel() << " differ, the first in row "
                << first / a.shape()[-1] << ", column " << first % a.shape()[-1] << ": " << a.data<float>()[first]
                << " instead of " << b.data<float>()[first];
}

struct CodedCase {
  QuantFormat format;
  DType dtype;
  int64_t items = 1, rows, n, k;
  std::string act = "none";
  std::optional<DType> bias = {};
  bool gate = false, residual = false, strided = false, odd_gate = false;

  std::string name() const {
    std::string text(quant_format_name(format));
    text += " " + std::string(dtype_name(dtype)) + " " + std::to_string(items) + " x " + std::to_string(rows) + ", " +
            std::to_string(n) + ", " + std::to_string(k) + " " + act;
    if (bias) text += " bias " + std::string(dtype_name(*bias));
    for (auto [flag, what] :
         {std::pair{gate, " gate"}, {residual, " residual"}, {strided, " strided"}, {odd_gate, " odd gate"}}) {
      if (flag) text += what;
    }
    return text;
  }

  // `type`: in place of dtype.
  template <class Run>
  Tensor run(const Tensor& x, DType type, const Run& how) const {
    Graph graph;
    std::map<std::string, Tensor> feed;
    uint64_t seed = 1;
    auto input = [&](const char* what, const Tensor& values) {
      feed[what] = values.to(dtype).to(type);
      return graph.input(what, values.shape(), type);
    };
    Value in = input("x", x);
    QuantizedFinish finish{.act = act};
    if (bias) finish.bias = graph.parameter("bias", whole({n}, ++seed, 4).to(*bias));
    if (gate) finish.gate = input("gate", random_tensor({items, 1, n}, ++seed, -2, 2));
    if (odd_gate) finish.gate = slice(input("gate", random_tensor({1, 1, n + 3}, ++seed, -2, 2)), 2, 3, n + 3);
    if (residual) finish.residual = input("residual", random_tensor({items, rows, n}, ++seed, -2, 2));
    Value y = quantized_linear(in, parameters(graph, format, exact_weight(format, n, k, ++seed)), finish);
    if (strided) {  // columns of a wider result, which begin at a multiple of 256 bytes
      y = concat({quantized_linear(in, parameters(graph, format, exact_weight(format, 256, k, ++seed), "v"), {}), y},
                 2);
    }
    graph.output("y", y);
    return how(graph, feed).at("y");
  }

  Tensor fused(const Tensor& x) const {
    Fused with(true);
    EXPECT_TRUE(cuda::CodedProduct(format, items * rows, n, k, {.dtype = dtype}).available()) << name();
    return run(x, dtype, run_on_gpu);
  }
  // Of sums that are exact in float32, and rounded once.
  void expect_exact() const {
    Tensor x = whole({items, rows, k}, 9, 4);
    auto on_cpu = [](const Graph& graph, const std::map<std::string, Tensor>& feed) { return run_graph(graph, feed); };
    expect_same(fused(x), run(x, DType::f32, on_cpu).to(dtype), name());
  }
  // Of sums that 16 bits hold, too, finished by a kernel of their own.
  void expect_decoders_bits() const {
    Tensor x = Tensor::zeros({items, rows, k});
    for (int64_t i = 0; i < items * rows; ++i) {
      x.data<float>()[i * k + i * 7 % k] = 1;
      x.data<float>()[i * k + (i * 11 + 5) % k] = -1;
    }
    Tensor got = fused(x);
    Fused with(false);
    expect_same(got, run(x, dtype, run_on_gpu), name());
  }
};

class CudaCodedProduct : public testing::TestWithParam<QuantFormat> {
 protected:
  void SetUp() override {
    KINORA_NEEDS_GPU();
    if (!cuda::coded_kernel_runs()) GTEST_SKIP() << "this GPU does not run that kernel";
  }
};

// Each row of x takes one column of the weight.
TEST_P(CudaCodedProduct, MultipliesDecodersNumbers) {
  for (DType dtype : kTypes) {
    for (auto [n, k] : {std::array<int64_t, 2>{8, 64}, {136, 192}, {328, 448}}) {
      Tensor x = Tensor::zeros({1, k, k});
      for (int64_t i = 0; i < k; ++i) x.data<float>()[i * k + i] = 1;
      Graph graph;
      QuantizedMatrix q = quantize_matrix(random_tensor({n, k}, 5), GetParam());
      graph.output("y", quantized_linear(graph.input("x", x.shape(), dtype), parameters(graph, GetParam(), q), {}));
      std::map<std::string, Tensor> feed{{"x", x.to(dtype)}};
      Tensor got, expected;
      {
        Fused with(true);
        EXPECT_TRUE(cuda::CodedProduct(GetParam(), k, n, k, {.dtype = dtype}).available());
        got = run_on_gpu(graph, feed).at("y");
      }
      {
        Fused with(false);
        expected = run_on_gpu(graph, feed).at("y");
      }
      expect_same(got, expected, std::string(dtype_name(dtype)) + " " + std::to_string(n) + ", " + std::to_string(k));
    }
  }
}

TEST_P(CudaCodedProduct, GivesExactSumsInEveryShape) {
  for (DType dtype : kTypes) {
    for (int64_t rows : {2, 77, 300, 600, 2056}) {
      for (int64_t n : {8, 72, 2240}) {
        for (int64_t k : {64, 128, 192}) {
          CodedCase{.format = GetParam(), .dtype = dtype, .rows = rows, .n = n, .k = k, .bias = dtype}.expect_exact();
        }
      }
    }
  }
}

TEST_P(CudaCodedProduct, GivesDecodersBitsWithEveryFinish) {
  for (DType dtype : kTypes) {
    for (const char* act : {"none", "relu", "silu", "gelu_tanh"}) {
      for (int more = 0; more < 4; ++more) {
        CodedCase{.format = GetParam(),
                  .dtype = dtype,
                  .items = 3,
                  .rows = 67,
                  .n = 136,
                  .k = 320,
                  .act = act,
                  .bias = DType::f32,  // which the library leaves to the kernel
                  .gate = more % 2 == 1,
                  .residual = more >= 2}
            .expect_decoders_bits();
      }
    }
  }
}

TEST_P(CudaCodedProduct, WritesAmongOtherColumns) {
  for (DType dtype : kTypes) {
    for (int64_t n : {40, 1152}) {
      CodedCase{.format = GetParam(),
                .dtype = dtype,
                .items = 2,
                .rows = 150,
                .n = n,
                .k = 256,
                .bias = DType::f32,
                .residual = true,
                .strided = true}
          .expect_decoders_bits();
    }
    CodedCase{.format = GetParam(), .dtype = dtype, .rows = 90, .n = 72, .k = 64, .bias = DType::f32, .odd_gate = true}
        .expect_decoders_bits();
  }
}

// Of the models: several tiles for each block, sums over many stages.
TEST_P(CudaCodedProduct, GivesExactSumsAtTheModelsSizes) {
  for (auto [rows, n, k] : {std::array<int64_t, 3>{2048, 6720, 2240},
                            {2048, 2240, 5600},
                            {300, 2304, 9216},
                            {600, 9216, 2304},
                            {2207, 9216, 3072}}) {
    CodedCase{.format = GetParam(), .dtype = DType::bf16, .rows = rows, .n = n, .k = k, .bias = DType::bf16}
        .expect_exact();
  }
}

TEST(CudaCodedProducts, LeaveOtherShapesToTheLibrary) {
  KINORA_NEEDS_GPU();
  Fused with(true);
  auto available = [](int64_t n, int64_t k, const cuda::ProductFinish& finish) {
    return cuda::CodedProduct(QuantFormat::nvfp4, 100, n, k, finish).available();
  };
  EXPECT_EQ(available(72, 128, {.dtype = DType::bf16}), cuda::coded_kernel_runs());
  EXPECT_FALSE(available(72, 128, {.dtype = DType::f32}));
  EXPECT_FALSE(available(72, 144, {.dtype = DType::bf16}));
  EXPECT_FALSE(available(76, 128, {.dtype = DType::bf16}));
  EXPECT_FALSE(available(72, 128, {.dtype = DType::bf16, .out_row = 148}));
}

std::string format_name(const testing::TestParamInfo<QuantFormat>& format) {
  std::string name(quant_format_name(format.param));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Formats, CudaCodedProduct, testing::ValuesIn(kFormats), format_name);

}  // namespace
}  // namespace kinora::test
