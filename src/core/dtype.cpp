#include "core/dtype.h"

#include <array>
#include <cstring>

#include "core/error.h"

namespace kinora {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  size_t size;
};

constexpr std::array<DTypeInfo, 15> kDTypes{{{DType::f32, "F32", 4},
                                             {DType::f16, "F16", 2},
                                             {DType::bf16, "BF16", 2},
                                             {DType::f64, "F64", 8},
                                             {DType::i32, "I32", 4},
                                             {DType::i64, "I64", 8},
                                             {DType::u8, "U8", 1},
                                             {DType::i8, "I8", 1},
                                             {DType::u16, "U16", 2},
                                             {DType::i16, "I16", 2},
                                             {DType::u32, "U32", 4},
                                             {DType::u64, "U64", 8},
                                             {DType::boolean, "BOOL", 1},
                                             {DType::f8_e4m3, "F8_E4M3", 1},
                                             {DType::f8_e5m2, "F8_E5M2", 1}}};

template <class T>
void widen(const void* src, float* dst, size_t count) {
  const T* values = static_cast<const T*>(src);
  for (size_t i = 0; i < count; ++i) dst[i] = static_cast<float>(values[i]);
}

// The upper halves of float16 numbers.
void widen_e5m2(const void* src, float* dst, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    f16 half;
    half.bits = static_cast<uint16_t>(static_cast<const uint8_t*>(src)[i] << 8);
    dst[i] = static_cast<float>(half);
  }
}

template <class T>
void narrow(const float* src, void* dst, size_t count) {
  T* values = static_cast<T*>(dst);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<T>(src[i]);
}

}  // namespace

size_t dtype_size(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].size; }
std::string_view dtype_name(DType dtype) { return kDTypes[static_cast<size_t>(dtype)].name; }

DType dtype_from_name(std::string_view name) {
  for (const DTypeInfo& info : kDTypes) {
    if (info.name == name) return info.dtype;
  }
  fail(ErrorKind::input, "unknown element type '" + std::string(name.substr(0, 32)) + "'");
}

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

f16::f16(float value) {
  uint32_t u = std::bit_cast<uint32_t>(value);
  uint32_t sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) {  // NaN: keep the upper bits of the payload, quietened
    bits = static_cast<uint16_t>(sign | 0x7e00u | ((u >> 13) & 0x1ffu));
  } else if (u >= 0x477ff000u) {  // rounds to 65536 or more
    bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (u < 0x38800000u) {  // subnormal: let the FPU round by adding 0.5
    float shifted = std::bit_cast<float>(u) + 0.5f;
    bits = static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  } else {
    uint32_t odd = (u >> 13) & 1;
    bits = static_cast<uint16_t>(sign | ((u - 0x38000000u + 0xfffu + odd) >> 13));
  }
}

f16::operator float() const {
  uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  uint32_t magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13));
  if (magnitude < 0x400u) {
    float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000u));
}

f8_e4m3::f8_e4m3(float value) {
  uint32_t u = std::bit_cast<uint32_t>(value);
  uint32_t sign = (u >> 24) & 0x80u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) {
    bits = static_cast<uint8_t>(sign | 0x7fu);
  } else if (u >= 0x43e00000u) {  // 448 or more
    bits = static_cast<uint8_t>(sign | 0x7eu);
  } else if (u < 0x3c800000u) {  // below 2^-6, subnormal: adding 2^14 makes the unit in the last place 2^-9
    float shifted = std::bit_cast<float>(u) + 0x1p14f;
    bits = static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x46800000u));
  } else {
    uint32_t odd = (u >> 20) & 1;
    bits = static_cast<uint8_t>(sign | ((u - 0x3c000000u + 0x7ffffu + odd) >> 20));
  }
}

f8_e4m3::operator float() const {
  uint32_t sign = static_cast<uint32_t>(bits & 0x80u) << 24;
  uint32_t magnitude = bits & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8) {
    float value = static_cast<float>(magnitude) * 0x1p-9f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + 0x3c000000u));
}

f4_e2m1::f4_e2m1(float value) {
  float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0x7fffffffu);
  // Halfway points go to the code whose last bit is 0.
  uint32_t code = 0;
  if (!(magnitude <= 0.25f)) code = 1;
  if (!(magnitude < 0.75f)) code = 2;
  if (!(magnitude <= 1.25f)) code = 3;
  if (!(magnitude < 1.75f)) code = 4;
  if (!(magnitude <= 2.5f)) code = 5;
  if (!(magnitude < 3.5f)) code = 6;
  if (!(magnitude <= 5.0f)) code = 7;
  bits = static_cast<uint8_t>((std::bit_cast<uint32_t>(value) >> 28 & 8u) | code);
}

f4_e2m1::operator float() const {
  constexpr float kMagnitudes[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  float value = kMagnitudes[bits & 7u];
  return bits & 8u ? -value : value;
}

void to_float(DType dtype, const void* src, float* dst, size_t count) {
  switch (dtype) {
    case DType::f32: std::memcpy(dst, src, count * 4); return;
    case DType::f16: return widen<f16>(src, dst, count);
    case DType::bf16: return widen<bf16>(src, dst, count);
    case DType::f64: return widen<double>(src, dst, count);
    case DType::i32: return widen<int32_t>(src, dst, count);
    case DType::i64: return widen<int64_t>(src, dst, count);
    case DType::boolean:
    case DType::u8: return widen<uint8_t>(src, dst, count);
    case DType::i8: return widen<int8_t>(src, dst, count);
    case DType::f8_e4m3: return widen<f8_e4m3>(src, dst, count);
    case DType::f8_e5m2: return widen_e5m2(src, dst, count);
    default: fail(ErrorKind::input, "cannot convert " + std::string(dtype_name(dtype)) + " to float32");
  }
}

void from_float(DType dtype, const float* src, void* dst, size_t count) {
  switch (dtype) {
    case DType::f32: std::memcpy(dst, src, count * 4); return;
    case DType::f16: return narrow<f16>(src, dst, count);
    case DType::bf16: return narrow<bf16>(src, dst, count);
    case DType::i32: return narrow<int32_t>(src, dst, count);
    case DType::i64: return narrow<int64_t>(src, dst, count);
    case DType::u8: return narrow<uint8_t>(src, dst, count);
    case DType::f8_e4m3: return narrow<f8_e4m3>(src, dst, count);
    default: fail(ErrorKind::input, "cannot convert float32 to " + std::string(dtype_name(dtype)));
  }
}

}  // namespace kinora
