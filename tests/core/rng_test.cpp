#include "core/rng.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <filesystem>
#include <string>

#include "io/safetensors.h"

namespace kinora {
namespace {

const std::string kGolden = KINORA_SOURCE_DIR "/tests/golden/";

int64_t different_bits(const Tensor& got, const Tensor& expected) {
  if (got.numel() != expected.numel()) return -1;
  int64_t different = 0;
  for (int64_t i = 0; i < got.numel(); ++i) {
    different +=
        std::bit_cast<uint32_t>(got.data<float>()[i]) != std::bit_cast<uint32_t>(expected.data<float>()[i]) ? 1 : 0;
  }
  return different;
}

struct Name {
  uint64_t seed;
  int64_t size;
  int call;
};

Name parse(const std::string& name) {
  size_t a = name.find('.'), b = name.rfind('.');
  return {std::stoull(name), std::stoll(name.substr(a + 1)), std::stoi(name.substr(b + 1))};
}

TEST(CpuGenerator, RandnEqualsTorchToTheBit) {
  auto file = SafetensorsFile::open(kGolden + "randn.safetensors");
  int cases = 0;
  for (const auto& entry : file.header().entries) {
    if (entry.name.starts_with("mixed") || entry.name == "uniform") continue;
    Name name = parse(entry.name);
    CpuGenerator generator(name.seed);
    for (int call = 0; call < name.call; ++call) generator.randn({name.size});
    EXPECT_EQ(different_bits(generator.randn({name.size}), file.tensor(entry)), 0) << entry.name;
    ++cases;
  }
  EXPECT_EQ(cases, 88);
}

TEST(CpuGenerator, CallsOfSeveralSizesShareOneStream) {
  auto file = SafetensorsFile::open(kGolden + "randn.safetensors");
  CpuGenerator generator(7);
  for (int n = 0; n < 5; ++n) {
    Tensor expected = file.tensor("mixed." + std::to_string(n));
    EXPECT_EQ(different_bits(generator.randn(expected.shape()), expected), 0) << n;
  }
}

TEST(CpuGenerator, UniformEqualsTorchToTheBit) {
  auto file = SafetensorsFile::open(kGolden + "randn.safetensors");
  EXPECT_EQ(different_bits(CpuGenerator(42).uniform({10, 100}), file.tensor("uniform")), 0);
}

TEST(CpuGenerator, AcceptsAnEmptyShape) {
  CpuGenerator a(3), b(3);
  EXPECT_EQ(a.randn({0, 4}).numel(), 0);
  EXPECT_EQ(different_bits(a.randn({20}), b.randn({20})), 0);
}

// The known answers of Random123, the library that defines Philox.
TEST(PhiloxGenerator, BlockGivesThePublishedVectors) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(PhiloxGenerator::block({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  uint32_t ones = 0xffffffffu;
  EXPECT_EQ(PhiloxGenerator::block({ones, ones, ones, ones}, {ones, ones}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(PhiloxGenerator::block({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxGenerator, ValuesAreNormal) {
  Tensor values = PhiloxGenerator(5).randn({1, 4, 512, 300});
  double sum = 0, squares = 0;
  for (float v : values.values<float>()) {
    ASSERT_TRUE(std::isfinite(v));
    sum += v;
    squares += double{v} * v;
  }
  double n = static_cast<double>(values.numel());
  EXPECT_NEAR(sum / n, 0, 0.01);
  EXPECT_NEAR(squares / n, 1, 0.01);
}

// Fewer threads than elements / 4 make a thread draw twice; the first draw must not depend on that.
TEST(PhiloxGenerator, LayoutFollowsTheNumberOfThreads) {
  Tensor narrow = PhiloxGenerator(9, 1, 512).randn({5000}), wide = PhiloxGenerator(9).randn({5000});
  for (int i = 0; i < 512; ++i) EXPECT_EQ(narrow.data<float>()[i], wide.data<float>()[i]) << i;
  PhiloxGenerator twice(9, 1, 512), once(9, 1, 512);
  twice.randn({2048});
  once.randn({1});
  // Both calls took one draw of four words from each thread.
  EXPECT_EQ(different_bits(twice.randn({100}), once.randn({100})), 0);
}

TEST(PhiloxGenerator, RandnIsCloseToTorchOnAGpu) {
  std::string path = kGolden + "randn_cuda.safetensors";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path << " (make_randn_cuda.py writes it on a GPU)";
  auto file = SafetensorsFile::open(path);
  const Tensor gpu = file.tensor("multiprocessors");
  for (const auto& entry : file.header().entries) {
    if (entry.name == "multiprocessors") continue;
    Name name = parse(entry.name);
    PhiloxGenerator generator(name.seed, static_cast<int>(gpu.data<int64_t>()[0]),
                              static_cast<int>(gpu.data<int64_t>()[1]));
    for (int call = 0; call < name.call; ++call) generator.randn({name.size});
    const Tensor got = generator.randn({name.size}), expected = file.tensor(entry);
    int64_t kept = expected.numel();
    for (int64_t i = 0; i < kept; ++i) {
      int64_t at = kept == name.size || i < kept / 2 ? i : name.size - kept + i;
      // The radius is at most 6.7, __sincosf is off by at most 2^-21; twice that leaves room for the logarithm.
      ASSERT_NEAR(got.data<float>()[at], expected.data<float>()[i], 6.7 * 0x1p-20) << entry.name << " at " << at;
    }
  }
}

}  // namespace
}  // namespace kinora
