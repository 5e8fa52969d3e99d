// Element types and their conversions to and from float32.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kinora {

enum class DType : uint8_t { f32, f16, bf16, f64, i32, i64, u8, i8, u16, i16, u32, u64, boolean, f8_e4m3, f8_e5m2 };

// Bytes of one element.
size_t dtype_size(DType dtype);
// The name safetensors uses: "F32", "BF16", …
std::string_view dtype_name(DType dtype);
// Throws Error(input) on a name that is not known.
DType dtype_from_name(std::string_view name);
bool is_float(DType dtype);  // f32, f16, bf16: the types that kernels compute on

// Brain float: the upper half of a float32. Rounds to nearest even; a NaN stays a NaN.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) {
    uint32_t u = std::bit_cast<uint32_t>(value);
    bits = (u & 0x7fffffffu) > 0x7f800000u ? static_cast<uint16_t>((u >> 16) | 0x40)
                                           : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// IEEE half precision. Rounds to nearest even; overflow becomes infinity.
struct f16 {
  uint16_t bits = 0;
  f16() = default;
  explicit f16(float value);
  explicit operator float() const;
};

// 8-bit float of 4 exponent and 3 mantissa bits without infinities ("E4M3FN", OCP 8-bit floating point specification).
// Rounds to nearest even and saturates at ±448; a NaN becomes 0x7f with its sign.
struct f8_e4m3 {
  uint8_t bits = 0;
  f8_e4m3() = default;
  explicit f8_e4m3(float value);
  explicit operator float() const;
};

// 4-bit float of 2 exponent and 1 mantissa bit: ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}, in the lower half of `bits` (OCP
// microscaling formats). Rounds to nearest even and saturates at ±6; there is no NaN, so one becomes 6 with its sign.
struct f4_e2m1 {
  uint8_t bits = 0;
  f4_e2m1() = default;
  explicit f4_e2m1(float value);
  explicit operator float() const;
};

// Converts `count` elements to float32. `src` may be f32, f16, bf16, f64, f8_e4m3, f8_e5m2 or an integer type.
void to_float(DType dtype, const void* src, float* dst, size_t count);
// Converts `count` float32 values; `dst` may be f32, f16, bf16, f8_e4m3, i32, i64 or u8 (integers truncate).
void from_float(DType dtype, const float* src, void* dst, size_t count);

}  // namespace kinora
