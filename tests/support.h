// What the tests share: the tolerance table, comparison, deterministic inputs, running a graph.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cpu/backend.h"
#include "graph/executable.h"

namespace kinora::test {

// Largest error allowed, relative to the largest magnitude expected: the rounding unit of the type times the growth of
// the error over a sum of `terms` terms. The one place where tolerances come from.
inline double tolerance(DType dtype, int64_t terms) {
  double unit = dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0x1p-23;
  double growth = 4 + std::sqrt(static_cast<double>(std::max<int64_t>(terms, 1)));
  return unit * growth;
}

// Sums of about this many terms follow one another through a whole model.
constexpr int64_t kModelTerms = 1 << 14;

// Checks |got - expected| <= tolerance · max|expected| elementwise; NaN never passes.
inline void expect_close(const Tensor& got, const Tensor& expected, DType dtype, int64_t terms,
                         const std::string& what) {
  ASSERT_EQ(got.shape(), expected.shape()) << what << ": " << got.shape().str() << " vs " << expected.shape().str();
  Tensor a = got.to(DType::f32), b = expected.to(DType::f32);
  double peak = 0, worst = 0;
  size_t at = 0;
  bool finite = true;
  for (size_t i = 0; i < a.values<float>().size(); ++i) {
    double x = a.values<float>()[i], y = b.values<float>()[i];
    peak = std::max(peak, std::abs(y));
    double error = std::abs(x - y);
    if (!(error <= worst)) {
      finite = finite && !std::isnan(error);
      worst = error;
      at = i;
    }
  }
  double allowed = tolerance(dtype, terms) * std::max(peak, 1e-30);
  EXPECT_TRUE(finite && worst <= allowed)
      << what << ": element " << at << " is " << a.values<float>()[at] << ", expected " << b.values<float>()[at]
      << "; error " << worst << " of " << allowed << " allowed";
}

// What the Error that `body` throws says; checks its kind. "no error" where there is none.
template <class Body>
std::string message_of(const Body& body, ErrorKind kind) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "no error";
}

// Uniform in [low, high), from a small generator of its own so that inputs never change.
inline Tensor random_tensor(const Shape& shape, uint64_t seed, float low = -1, float high = 1) {
  Tensor tensor(shape, DType::f32);
  uint64_t state = seed * 0x9e3779b97f4a7c15u + 0x1234567;
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    tensor.data<float>()[i] = low + (high - low) * static_cast<float>(state >> 40) * 0x1p-24f;
  }
  return tensor;
}

inline ExecutionContext context(int threads) {
  ExecutionContext c;
  c.pool = std::make_shared<ThreadPool>(threads);
  return c;
}

inline std::map<std::string, Tensor> run_graph(const Graph& graph, const std::map<std::string, Tensor>& inputs,
                                               int threads = 2) {
  return compile(graph, cpu::backend(), context(threads)).run(inputs);
}

}  // namespace kinora::test
