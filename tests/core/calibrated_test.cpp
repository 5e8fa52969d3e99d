// Rounding by what weights are multiplied with: what it must keep, and that its products err less.
#include "core/calibrated.h"

#include <cmath>

#include "support.h"

namespace kinora::test {
namespace {

const QuantFormat kFormats[] = {QuantFormat::int8, QuantFormat::fp8, QuantFormat::nvfp4, QuantFormat::nvfp4_both};

// The mean of x·xᵀ over 300 rows whose inputs hang together: few directions, of sizes that differ, and some noise.
Tensor moments_of_rows(int64_t k, uint64_t seed) {
  constexpr int64_t kRows = 300, kDirections = 12;
  Tensor mixed = random_tensor({kDirections, k}, seed), parts = random_tensor({kRows, kDirections}, seed + 1);
  Tensor noise = random_tensor({kRows, k}, seed + 2, -0.1f, 0.1f), moments = Tensor::zeros({k, k});
  for (int64_t r = 0; r < kRows; ++r) {
    std::vector<float> x(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; ++i) {
      float& v = x[static_cast<size_t>(i)];
      v = noise.data<float>()[r * k + i];
      for (int64_t d = 0; d < kDirections; ++d)
        v += parts.data<float>()[r * kDirections + d] * mixed.data<float>()[d * k + i] / static_cast<float>(1 + i % 7);
    }
    for (int64_t i = 0; i < k * k; ++i)
      moments.data<float>()[i] += x[static_cast<size_t>(i / k)] * x[static_cast<size_t>(i % k)] / kRows;
  }
  return moments;
}

Tensor diagonal_of(const Tensor& moments) {
  int64_t k = moments.shape()[0];
  Tensor diagonal({k}, DType::f32);
  for (int64_t i = 0; i < k; ++i) diagonal.data<float>()[i] = moments.data<float>()[i * k + i];
  return diagonal;
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() &&
         std::equal(static_cast<const std::byte*>(a.raw()), static_cast<const std::byte*>(a.raw()) + a.bytes(),
                    static_cast<const std::byte*>(b.raw()));
}

TEST(InputMoments, TheirFactorGivesThemBack) {
  constexpr int64_t k = 144;  // more than two panels, the last one not whole
  Tensor m = moments_of_rows(k, 1);
  InputMoments inputs(m);
  const float* r = inputs.factor().data<float>();
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += double{m.data<float>()[i * k + i]} / k;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      if (j < i) {
        ASSERT_EQ(r[i * k + j], 0);
      }
      double product = 0;
      for (int64_t c = 0; c < k; ++c) product += double{r[i * k + c]} * r[j * k + c];
      int64_t a = inputs.order()[static_cast<size_t>(i)], b = inputs.order()[static_cast<size_t>(j)];
      double expected = double{m.data<float>()[a * k + b]} + (i == j ? 0.01 * mean : 0);
      ASSERT_NEAR(product, expected, 1e-5 * mean) << i << ", " << j;
    }
  }
}

TEST(InputMoments, RefusesWhatIsNotFinite) {
  for (float bad : {NAN, INFINITY}) {
    Tensor m = moments_of_rows(32, 2);
    m.data<float>()[5] = bad;
    EXPECT_NE(message_of([&] { InputMoments inputs(m); }, ErrorKind::model).find("not finite"), std::string::npos);
  }
}

TEST(CalibratedMatrix, ProductsErrLess) {
  Tensor weight = random_tensor({40, 144}, 3), m = moments_of_rows(144, 4);
  for (bool full : {true, false}) {
    InputMoments inputs(full ? m : diagonal_of(m));
    for (QuantFormat format : kFormats) {
      double plain = product_error(weight, quantize_matrix(weight, format), format, inputs);
      double calibrated = product_error(weight, quantize_matrix(weight, format, inputs), format, inputs);
      EXPECT_LT(calibrated, plain * (full ? 0.5 : 0.999)) << quant_format_name(format) << (full ? " full" : "");
    }
  }
}

// The same formula, written out for one row.
TEST(CalibratedMatrix, ItsErrorIsThatOfProducts) {
  Tensor weight = random_tensor({1, 32}, 5), x = random_tensor({32}, 6), m({32, 32}, DType::f32);
  for (int64_t i = 0; i < 32; ++i) x.data<float>()[i] = std::round(x.data<float>()[i] * 64) / 64;  // products are exact
  for (int64_t i = 0; i < 32 * 32; ++i) m.data<float>()[i] = x.data<float>()[i / 32] * x.data<float>()[i % 32];
  QuantizedMatrix q = quantize_matrix(weight, QuantFormat::int8);
  double exact = 0, decoded = 0;
  for (int64_t i = 0; i < 32; ++i) {
    exact += double{weight.data<float>()[i]} * x.data<float>()[i];
    decoded += double{q.scale.data<float>()[0]} * q.codes.data<int8_t>()[i] * x.data<float>()[i];
  }
  EXPECT_NEAR(product_error(weight, q, QuantFormat::int8, InputMoments(m)), std::abs(exact - decoded) / std::abs(exact),
              1e-5);
}

TEST(CalibratedMatrix, IsTheSameForAnyNumberOfThreads) {
  Tensor weight = random_tensor({37, 96}, 7).to(DType::bf16), m = moments_of_rows(96, 8);
  ThreadPool pool(3);
  InputMoments alone(m), together(m, &pool);
  EXPECT_TRUE(same_bytes(alone.factor(), together.factor()));
  for (QuantFormat format : kFormats) {
    QuantizedMatrix a = quantize_matrix(weight, format, alone), b = quantize_matrix(weight, format, together, &pool);
    EXPECT_TRUE(same_bytes(a.codes, b.codes) && same_bytes(a.scale, b.scale)) << quant_format_name(format);
  }
}

TEST(CalibratedMatrix, KeepsZeroRowsAndHidesNothing) {
  InputMoments inputs(moments_of_rows(32, 9)), nothing(Tensor::zeros({32, 32}));
  for (QuantFormat format : kFormats) {
    Tensor weight = random_tensor({2, 32}, 10);
    for (int64_t i = 0; i < 32; ++i) weight.data<float>()[i] = 0;
    QuantizedMatrix plain = quantize_matrix(weight, format), q = quantize_matrix(weight, format, inputs);
    EXPECT_TRUE(same_bytes(quantize_matrix(weight, format, nothing).codes, plain.codes));
    float scale_2 = q.scale_2.defined() ? q.scale_2.data<float>()[0] : 0;
    std::vector<float> row(32, 1.0f);
    dequantize_row({format, q.codes.raw(), q.scale.raw(), scale_2, 32}, 0, 0, 32, row.data());
    for (float v : row) EXPECT_EQ(v, 0);
    weight.data<float>()[40] = NAN;
    EXPECT_THROW(quantize_matrix(weight, format, inputs), Error);
  }
}

}  // namespace
}  // namespace kinora::test
