// Codes of 8 and 4 bits to floats and back (core/quantize.h), a part of simd_body.h. The same roundings as
// core/dtype.cpp, without branches.

using Bytes [[gnu::vector_size(16)]] = uint8_t;
using Words [[gnu::vector_size(64)]] = uint32_t;
using Integers [[gnu::vector_size(64)]] = int32_t;

void load_i8(const int8_t* codes, float* dst, size_t n) {
  for (size_t i = 0; i < n; ++i) dst[i] = static_cast<float>(codes[i]);
}

inline float e4m3_1(uint32_t code) {
  uint32_t magnitude = code & 0x7fu;
  float normal = std::bit_cast<float>((magnitude << 20) + 0x3c000000u);
  float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
  float value = magnitude < 8 ? small : normal;
  value = magnitude == 0x7f ? std::bit_cast<float>(0x7fc00000u) : value;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | (code & 0x80u) << 24);
}

void load_e4m3(const uint8_t* codes, float* dst, size_t n) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Bytes bytes;
    std::memcpy(&bytes, codes + i, sizeof bytes);
    Words code = __builtin_convertvector(bytes, Words), magnitude = code & 0x7fu;
    Words normal = (magnitude << 20) + 0x3c000000u;
    Words small = std::bit_cast<Words>(__builtin_convertvector(std::bit_cast<Integers>(magnitude), Vec) * 0x1p-9f);
    Words value = magnitude < 8u ? small : normal;
    value = magnitude == 0x7fu ? Words{} + 0x7fc00000u : value;
    value |= (code & 0x80u) << 24;
    std::memcpy(dst + i, &value, sizeof value);
  }
  for (; i < n; ++i) dst[i] = e4m3_1(codes[i]);
}

// A block of 16: value·scale. The lower half of a byte comes first.
void load_fp4(const uint8_t* codes, const uint8_t* scales, float* dst, size_t n) {
  using Bytes8 [[gnu::vector_size(8)]] = uint8_t;
  constexpr Words kShift{0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4};
  for (size_t at = 0; at < n; at += 16) {
    Bytes8 packed;
    std::memcpy(&packed, codes + at / 2, sizeof packed);
    Bytes twice = __builtin_shufflevector(packed, packed, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    Words code = __builtin_convertvector(twice, Words) >> kShift;
    Words magnitude = code & 7u;
    Vec normal = std::bit_cast<Vec>((magnitude << 22) + 0x3f000000u);
    Vec small = __builtin_convertvector(std::bit_cast<Integers>(magnitude), Vec) * 0.5f;
    Words value = magnitude < 2u ? std::bit_cast<Words>(small) : std::bit_cast<Words>(normal);
    Vec result = std::bit_cast<Vec>(value | (code & 8u) << 28) * e4m3_1(scales[at / 16]);
    std::memcpy(dst + at, &result, sizeof result);
  }
}

float peak(const float* x, size_t n) {
  uint32_t most = 0;
  for (size_t i = 0; i < n; ++i) {
    uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    most = magnitude > most ? magnitude : most;
  }
  return std::bit_cast<float>(most);
}

void quantize(DType type, const float* x, float inverse, void* codes, size_t n) {
  if (type == DType::i8) {
    auto* out = static_cast<int8_t*>(codes);
    for (size_t i = 0; i < n; ++i) {
      float v = x[i] * inverse;
      v = v > 127.0f ? 127.0f : v;
      v = v < -127.0f ? -127.0f : v;
      // Adding 1.5·2^23 leaves the nearest whole number, ties to even, in the lowest bits.
      out[i] = static_cast<int8_t>(std::bit_cast<int32_t>(v + 12582912.0f) - 0x4b400000);
    }
    return;
  }
  auto* out = static_cast<uint8_t*>(codes);
  for (size_t i = 0; i < n; ++i) {
    uint32_t bits = std::bit_cast<uint32_t>(x[i] * inverse), sign = (bits >> 24) & 0x80u;
    float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
    magnitude = magnitude > 448.0f ? 448.0f : magnitude;
    uint32_t u = std::bit_cast<uint32_t>(magnitude);
    uint32_t normal = (u - 0x3c000000u + 0x7ffffu + ((u >> 20) & 1u)) >> 20;
    uint32_t small = std::bit_cast<uint32_t>(magnitude + 0x1p14f) - 0x46800000u;
    out[i] = static_cast<uint8_t>(sign | (u < 0x3c800000u ? small : normal));
  }
}
