// Conversions over all bit patterns, against a search through all values of the narrow type.
#include "core/quantize.h"

#include <bit>
#include <cmath>

#include "support.h"

namespace kinora::test {
namespace {

// The code whose value is nearest to x; of two, that with an even last bit. `codes`: all non-negative finite ones.
template <class T>
uint8_t nearest(float x, int codes, int sign_bit) {
  int best = 0;
  double magnitude = std::min(std::abs(double{x}), 1e6), best_error = INFINITY;
  for (int i = 0; i < codes; ++i) {
    T value;
    value.bits = static_cast<uint8_t>(i);
    double error = std::abs(magnitude - double{static_cast<float>(value)});
    if (error < best_error || (error == best_error && i % 2 == 0)) {
      best = i;
      best_error = error;
    }
  }
  return static_cast<uint8_t>(best | (std::signbit(x) ? sign_bit : 0));
}

TEST(NarrowFloats, E4m3CodesKeepTheirValue) {
  for (int i = 0; i < 256; ++i) {
    f8_e4m3 code;
    code.bits = static_cast<uint8_t>(i);
    auto value = static_cast<float>(code);
    EXPECT_EQ(std::isnan(value), (i & 0x7f) == 0x7f) << i;
    EXPECT_EQ(f8_e4m3(value).bits, i);
    if ((i & 0x7f) == 0x7f) continue;
    int exponent = i >> 3 & 15, mantissa = i & 7;
    double expected = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
    EXPECT_EQ(value, static_cast<float>(i & 0x80 ? -expected : expected)) << i;
  }
}

TEST(NarrowFloats, E4m3RoundsEveryBfloat16AndEveryHalfwayPoint) {
  for (int i = 0; i < 65536; ++i) {
    bf16 input;
    input.bits = static_cast<uint16_t>(i);
    auto x = static_cast<float>(input);
    if (!std::isnan(x)) {
      ASSERT_EQ(f8_e4m3(x).bits, nearest<f8_e4m3>(x, 0x7f, 0x80)) << x;
    } else {
      ASSERT_EQ(f8_e4m3(x).bits, std::signbit(x) ? 0xff : 0x7f);
    }
  }
  for (uint8_t i = 0; i < 0x7e; ++i) {
    f8_e4m3 low, high;
    low.bits = i;
    high.bits = static_cast<uint8_t>(i + 1);
    float middle = (static_cast<float>(low) + static_cast<float>(high)) / 2;
    for (float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) {
      ASSERT_EQ(f8_e4m3(x).bits, nearest<f8_e4m3>(x, 0x7f, 0x80)) << x;
      ASSERT_EQ(f8_e4m3(-x).bits, nearest<f8_e4m3>(-x, 0x7f, 0x80)) << x;
    }
  }
}

TEST(NarrowFloats, E2m1RoundsEveryBfloat16AndEveryHalfwayPoint) {
  for (int i = 0; i < 16; ++i) {
    f4_e2m1 code;
    code.bits = static_cast<uint8_t>(i);
    EXPECT_EQ(f4_e2m1(static_cast<float>(code)).bits, i);
  }
  for (int i = 0; i < 65536; ++i) {
    bf16 input;
    input.bits = static_cast<uint16_t>(i);
    auto x = static_cast<float>(input);
    int expected = std::isnan(x) ? (std::signbit(x) ? 15 : 7) : nearest<f4_e2m1>(x, 8, 8);
    ASSERT_EQ(f4_e2m1(x).bits, expected) << x;
  }
  for (float middle : {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f}) {
    for (float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 9.0f)}) {
      ASSERT_EQ(f4_e2m1(x).bits, nearest<f4_e2m1>(x, 8, 8)) << x;
      ASSERT_EQ(f4_e2m1(-x).bits, nearest<f4_e2m1>(-x, 8, 8)) << x;
    }
  }
}

TEST(NarrowFloats, E5m2IsTheUpperHalfOfFloat16) {
  for (int i = 0; i < 256; ++i) {
    auto code = static_cast<uint8_t>(i);
    float got = 0;
    to_float(DType::f8_e5m2, &code, &got, 1);
    int exponent = i >> 2 & 31, mantissa = i & 3;
    if (exponent == 31) {
      EXPECT_EQ(std::isinf(got), mantissa == 0) << i;
      EXPECT_EQ(std::isnan(got), mantissa != 0) << i;
      continue;
    }
    double expected = exponent ? std::ldexp(4 + mantissa, exponent - 17) : std::ldexp(mantissa, -16);
    EXPECT_EQ(got, static_cast<float>(i & 0x80 ? -expected : expected)) << i;
  }
}

double relative_error(const Tensor& weight, QuantFormat format) {
  QuantizedMatrix q = quantize_matrix(weight, format);
  int64_t n = weight.shape()[0], k = weight.shape()[1];
  float scale_2 = q.scale_2.defined() ? q.scale_2.data<float>()[0] : 0;
  QuantizedView view{format, q.codes.raw(), q.scale.raw(), scale_2, k};
  std::vector<float> row(static_cast<size_t>(k));
  double error = 0, total = 0;
  for (int64_t i = 0; i < n; ++i) {
    dequantize_row(view, i, 0, k, row.data());
    for (int64_t j = 0; j < k; ++j) {
      double value = weight.data<float>()[i * k + j];
      error += (value - row[static_cast<size_t>(j)]) * (value - row[static_cast<size_t>(j)]);
      total += value * value;
    }
  }
  return std::sqrt(error / total);
}

// Uniform values: a step of size s errs by s/√12 in the root mean square, their own is 1/√3.
TEST(QuantizedMatrix, ErrsAsMuchAsTheFormatSays) {
  Tensor weight = random_tensor({32, 256}, 5);
  double int8 = relative_error(weight, QuantFormat::int8);
  EXPECT_NEAR(int8, 1.0 / 127 / 2, 2e-4);
  EXPECT_LT(relative_error(weight, QuantFormat::fp8), 0.03);
  EXPECT_GT(relative_error(weight, QuantFormat::fp8), int8);
  EXPECT_LT(relative_error(weight, QuantFormat::nvfp4), 0.1);
}

TEST(QuantizedMatrix, ZeroRowsAndBlocksStayZeroAndNothingElseIsHidden) {
  for (QuantFormat format : {QuantFormat::int8, QuantFormat::fp8, QuantFormat::nvfp4}) {
    Tensor weight = Tensor::zeros({2, 32});
    QuantizedMatrix q = quantize_matrix(weight, format);
    float scale_2 = q.scale_2.defined() ? q.scale_2.data<float>()[0] : 0;
    std::vector<float> row(32, 1.0f);
    dequantize_row({format, q.codes.raw(), q.scale.raw(), scale_2, 32}, 1, 0, 32, row.data());
    for (float v : row) EXPECT_EQ(v, 0);
    for (float bad : {INFINITY, NAN}) {
      weight.data<float>()[40] = bad;
      EXPECT_THROW(quantize_matrix(weight, format), Error);
    }
  }
}

// NVIDIA's inverse of the offset in a tile, and tiles of 512 bytes one row of them after another.
TEST(TiledScales, LieWhereCublasltReadsThem) {
  for (int64_t rows : {1, 128, 129, 300}) {
    for (int64_t blocks : {1, 4, 5, 72}) {
      int64_t across = (blocks + 3) / 4;
      EXPECT_EQ(tiled_scale_bytes(rows, blocks), (rows + 127) / 128 * across * 512);
      int64_t found = 0;
      for (int64_t at = 0; at < tiled_scale_bytes(rows, blocks); ++at) {
        int64_t tile = at / 512, offset = at % 512;
        int64_t row = tile / across * 128 + offset % 16 / 4 * 32 + offset / 16, block = tile % across * 4 + offset % 4;
        if (row >= rows || block >= blocks) continue;
        ASSERT_EQ(tiled_scale_at(row, block, blocks), at) << row << ", " << block;
        ++found;
      }
      EXPECT_EQ(found, rows * blocks);
    }
  }
}

std::vector<float> row_there_and_back(const std::vector<float>& x) {
  Nvfp4Rows layout{1, static_cast<int64_t>(x.size())};
  std::vector<std::byte> rows(static_cast<size_t>(layout.bytes()));
  std::vector<float> out(x.size());
  quantize_row_nvfp4(x.data(), layout, 0, rows.data());
  dequantize_row_nvfp4(rows.data(), layout, 0, out.data());
  return out;
}

// A block far below the row's peak keeps its shape, which E4M3's range alone would not give it for any size of x.
TEST(Nvfp4Rows, HaveARangeOfTheirOwn) {
  for (int exponent : {-90, -20, 0, 30, 100}) {
    std::vector<float> x;
    for (float v :
         {0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -6.0f, -4.0f, -3.0f, -2.0f, -1.5f, -1.0f, -0.5f, 0.f, 6.f})
      x.push_back(std::ldexp(v, exponent));
    for (int i = 0; i < 16; ++i) x.push_back(std::ldexp(x[static_cast<size_t>(i)], -14));
    std::vector<float> back = row_there_and_back(x);
    double unit = std::ldexp(1, exponent);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(back[i] / unit, x[i] / unit, i < 16 ? 1e-5 : 2e-5) << i;
  }
  for (float v : row_there_and_back(std::vector<float>(32, 1e-31f))) EXPECT_EQ(v, 0);
  std::vector<float> bad(32, 1.0f);
  bad[3] = INFINITY;
  for (float v : row_there_and_back(bad)) EXPECT_TRUE(std::isnan(v));
}

TEST(QuantizedRows, ANumberThatIsNotFiniteMakesItsRowNaN) {
  for (QuantFormat format : {QuantFormat::int8, QuantFormat::fp8}) {
    for (float bad : {INFINITY, -INFINITY, NAN}) {
      std::vector<float> x(16, 1.0f);
      x[3] = bad;
      uint8_t codes[16];
      float scale = 0;
      quantize_row(format, x.data(), 16, codes, &scale);
      EXPECT_TRUE(std::isnan(scale));
    }
  }
}

}  // namespace
}  // namespace kinora::test
