// Noise equal to PyTorch's: one seed gives the same picture here and there.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "core/tensor.h"

namespace kinora {

// torch.Generator("cpu"): Mersenne Twister 19937. Successive calls continue one stream, as in torch.
class CpuGenerator {
 public:
  explicit CpuGenerator(uint64_t seed);  // torch.Generator().manual_seed(seed): the low 32 bits count

  // torch.randn(shape, dtype=torch.float32), to the bit of a torch that runs its AVX2 kernel (any x86 since 2013).
  Tensor randn(const Shape& shape);
  // torch.rand(shape, dtype=torch.float32): 24 random bits each, in [0, 1).
  Tensor uniform(const Shape& shape);

 private:
  uint32_t next();
  float next_float();
  double next_double();
  double next_normal();
  void refill();

  static constexpr size_t kWords = 624;
  std::array<uint32_t, kWords> state_{};
  size_t at_ = kWords;
  std::optional<double> spare_;  // the sine half of the last pair drawn one by one
};

// torch.Generator("cuda"): Philox4x32-10, laid out over threads as torch's kernel does. The layout depends on the
// GPU only when a tensor has more elements than the GPU has threads; the defaults are those of H100 and H200.
// The integers are exact. The floats differ from the GPU's in the last bits, because curand takes sine and cosine
// from the GPU's approximate unit (__sincosf, absolute error up to 2^-21 times the radius, which is below 6.7).
class PhiloxGenerator {
 public:
  explicit PhiloxGenerator(uint64_t seed, int multiprocessors = 132, int threads_per_multiprocessor = 2048);

  // torch.randn(shape, dtype=torch.float32, device="cuda").
  Tensor randn(const Shape& shape);

  // The four words of one counter; public for the tests against the published vectors.
  static std::array<uint32_t, 4> block(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

 private:
  uint64_t seed_;
  uint64_t offset_ = 0;  // in single 32-bit words, a multiple of 4
  int64_t max_blocks_;
};

}  // namespace kinora
