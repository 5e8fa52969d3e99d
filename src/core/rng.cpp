#include "core/rng.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>

namespace kinora {
namespace {

// The logarithm, sine and cosine of torch's AVX2 kernel: the Cephes single-precision polynomials. Where that kernel's
// compiler fused a product with a sum there is a std::fma here; every other operation rounds on its own.

float poly_log(float x) {
  if (x <= 0) return std::bit_cast<float>(0xffffffffu);
  x = std::max(x, 0x1p-126f);
  uint32_t bits = std::bit_cast<uint32_t>(x);
  float e = static_cast<float>(static_cast<int32_t>(bits >> 23) - 0x7f) + 1.0f;
  x = std::bit_cast<float>((bits & 0x807fffffu) | 0x3f000000u);
  bool small = x < 0.707106781186547524f;
  float addend = small ? x : 0.0f;
  x -= 1.0f;
  if (small) e -= 1.0f;
  x += addend;

  constexpr std::array<float, 8> kTail = {-1.1514610310E-1f, 1.1676998740E-1f, -1.2420140846E-1f, 1.4249322787E-1f,
                                          -1.6668057665E-1f, 2.0000714765E-1f, -2.4999993993E-1f, 3.3333331174E-1f};
  float z = x * x;
  float y = 7.0376836292E-2f;
  for (float c : kTail) y = std::fma(y, x, c);
  y *= x;
  y = std::fma(y, z, e * -2.12194440e-4f);
  y = std::fma(-z, 0.5f, y);
  return std::fma(e, 0.693359375f, x + y);
}

struct SinCos {
  float sin, cos;
};

// For x >= 0 (the kernel's angles are).
SinCos poly_sincos(float x) {
  int32_t octant = (static_cast<int32_t>(x * 1.27323954473516f) + 1) & ~1;
  float y = static_cast<float>(octant);
  x = std::fma(y, -0.78515625f, x);
  x = std::fma(y, -2.4187564849853515625e-4f, x);
  x = std::fma(y, -3.77489497744594108e-8f, x);

  float z = x * x;
  float c = std::fma(2.443315711809948E-005f, z, -1.388731625493765E-003f);
  c = std::fma(c, z, 4.166664568298827E-002f);
  c = std::fma(c * z, z, -(z * 0.5f)) + 1.0f;
  float s = std::fma(-1.9515295891E-4f, z, 8.3321608736E-3f);
  s = std::fma(s, z, -1.6666654611E-1f);
  s = std::fma(s * z, x, x);

  if (octant & 2) std::swap(s, c);
  if (octant & 4) s = -s;
  if ((octant - 2) & 4) return {s, c};
  return {s, -c};
}

// Eight uniforms and eight more become sixteen normals, in place.
void normal16(float* data) {
  for (int i = 0; i < 8; ++i) {
    float radius = std::sqrt(-2.0f * poly_log(1.0f - data[i]));
    SinCos angle = poly_sincos(static_cast<float>(2.0 * std::numbers::pi) * data[i + 8]);
    // torch adds the mean, 0, which turns a -0 into a +0.
    data[i] = radius * angle.cos + 0.0f;
    data[i + 8] = radius * angle.sin + 0.0f;
  }
}

}  // namespace

CpuGenerator::CpuGenerator(uint64_t seed) {
  state_[0] = static_cast<uint32_t>(seed);
  for (size_t i = 1; i < kWords; ++i) {
    state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + static_cast<uint32_t>(i);
  }
}

void CpuGenerator::refill() {
  constexpr size_t kShift = 397;
  for (size_t i = 0; i < kWords; ++i) {
    uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kWords] & 0x7fffffffu);
    state_[i] = state_[(i + kShift) % kWords] ^ (y >> 1) ^ ((y & 1) ? 0x9908b0dfu : 0u);
  }
  at_ = 0;
}

uint32_t CpuGenerator::next() {
  if (at_ == kWords) refill();
  uint32_t y = state_[at_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

float CpuGenerator::next_float() { return static_cast<float>(next() & 0xffffffu) * 0x1p-24f; }

double CpuGenerator::next_double() {
  uint64_t high = next(), low = next();
  return static_cast<double>(((high << 32) | low) & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
}

double CpuGenerator::next_normal() {
  if (spare_) {
    double value = *spare_;
    spare_.reset();
    return value + 0.0;
  }
  double u1 = next_double(), u2 = next_double();
  double radius = std::sqrt(-2.0 * std::log1p(-u2)), theta = 2.0 * std::numbers::pi * u1;
  spare_ = radius * std::sin(theta);
  return radius * std::cos(theta) + 0.0;
}

Tensor CpuGenerator::uniform(const Shape& shape) {
  Tensor tensor(shape, DType::f32);
  std::generate_n(tensor.data<float>(), tensor.numel(), [this] { return next_float(); });
  return tensor;
}

Tensor CpuGenerator::randn(const Shape& shape) {
  Tensor tensor(shape, DType::f32);
  float* data = tensor.data<float>();
  int64_t count = tensor.numel();
  if (count < 16) {
    std::generate_n(data, count, [this] { return static_cast<float>(next_normal()); });
    return tensor;
  }
  std::generate_n(data, count, [this] { return next_float(); });
  for (int64_t i = 0; i + 16 <= count; i += 16) normal16(data + i);
  if (count % 16 != 0) {  // the last sixteen are drawn again, as torch does
    std::generate_n(data + count - 16, 16, [this] { return next_float(); });
    normal16(data + count - 16);
  }
  return tensor;
}

PhiloxGenerator::PhiloxGenerator(uint64_t seed, int multiprocessors, int threads_per_multiprocessor)
    : seed_(seed), max_blocks_(int64_t{multiprocessors} * (threads_per_multiprocessor / 256)) {
  check(max_blocks_ > 0, "PhiloxGenerator: a GPU has at least one multiprocessor of 256 threads");
}

std::array<uint32_t, 4> PhiloxGenerator::block(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    uint64_t a = uint64_t{0xD2511F53u} * counter[0], b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

namespace {

// curand's Box-Muller: the first value is the sine.
void philox_pair(uint32_t x, uint32_t y, float* out) {
  constexpr float kInv = 2.3283064e-10f, kInvTwoPi = 2.3283064e-10f * 6.2831855f;
  float u = std::fma(static_cast<float>(x), kInv, kInv / 2);
  float v = std::fma(static_cast<float>(y), kInvTwoPi, kInvTwoPi / 2);
  float radius = std::sqrt(-2.0f * std::log(u));
  out[0] = radius * std::sin(v);
  out[1] = radius * std::cos(v);
}

}  // namespace

Tensor PhiloxGenerator::randn(const Shape& shape) {
  Tensor tensor(shape, DType::f32);
  int64_t count = tensor.numel();
  if (count == 0) return tensor;
  float* data = tensor.data<float>();
  int64_t blocks = std::min((count + 255) / 256, max_blocks_), threads = blocks * 256;
  std::array<uint32_t, 2> key = {static_cast<uint32_t>(seed_), static_cast<uint32_t>(seed_ >> 32)};
  int64_t rounds = (count - 1) / (threads * 4) + 1;
  for (int64_t round = 0; round < rounds; ++round) {
    uint64_t low = offset_ / 4 + static_cast<uint64_t>(round);
    for (int64_t thread = 0; thread < threads; ++thread) {
      int64_t first = round * threads * 4 + thread;
      if (first >= count) break;
      auto words = block({static_cast<uint32_t>(low), static_cast<uint32_t>(low >> 32), static_cast<uint32_t>(thread),
                          static_cast<uint32_t>(thread >> 32)},
                         key);
      std::array<float, 4> normals;
      philox_pair(words[0], words[1], normals.data());
      philox_pair(words[2], words[3], normals.data() + 2);
      for (int64_t i = 0; i < 4 && first + i * threads < count; ++i) {
        data[first + i * threads] = normals[static_cast<size_t>(i)];
      }
    }
  }
  offset_ += static_cast<uint64_t>(rounds) * 4;
  return tensor;
}

}  // namespace kinora
