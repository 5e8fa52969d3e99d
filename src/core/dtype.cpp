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
    default: fail(ErrorKind::input, "cannot convert float32 to " + std::string(dtype_name(dtype)));
  }
}

}  // namespace kinora
