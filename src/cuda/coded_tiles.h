// Where the parts of a product with a coded weight lie: arithmetic that the kernel and a test on the host share.
#pragma once

#include <cstdint>

namespace kinora::cuda {

// A lane of column c = lane % 4 holds of 16 values along k those from 2c and from 2c + 8 on, as mma's A does.
//
// Of 4-bit codes these are the bytes c and c + 4 of eight. The selector (of PRMT, from both words) puts them in the
// bits 8 to 15 and 24 to 31; what lies between is not looked at.
constexpr uint32_t fp4_selector(uint32_t c) { return c * 0x1111u + 0x4400u; }
// Two codes as halves that stand for 2^-14 of their value (see fp4_value): those in the upper halves of the two bytes,
// and those in the lower ones.
constexpr uint32_t fp4_upper(uint32_t bytes) { return (bytes & 0x80008000u) | (bytes >> 3 & 0x0e000e00u); }
constexpr uint32_t fp4_lower(uint32_t bytes) { return (bytes << 4 & 0x80008000u) | (bytes << 1 & 0x0e000e00u); }

// Of codes of 8 bits: the bytes 2c and 2c + 1 of two words, in the lower half.
constexpr uint32_t byte_selector(uint32_t c) { return 2 * c + (2 * c + 1) * 0x10u; }

// A warpgroup passes its sums [64 of n, 32 tokens] through shared memory, from lanes that hold pairs of tokens (value v
// of 8 tokens `eighth` in warp w of four is of n 16 w + lane / 4 + 8 (v / 2)) to threads that hold 8 neighbours of n as
// two halves of 16 bytes, of the tokens thread / 8 and 16 further. Words from its start; rows are so long that lanes
// keep out of each other's banks.
constexpr uint32_t kPassedRow = 68, kPassedWords = 32 * kPassedRow;
constexpr uint32_t passed_value(uint32_t thread, uint32_t eighth, uint32_t v) {
  uint32_t lane = thread % 32;
  return (8 * eighth + lane % 4 * 2 + v % 2) * kPassedRow + thread / 32 * 16 + lane / 4 + 8 * (v / 2);
}
constexpr uint32_t passed_half(uint32_t thread, uint32_t i, uint32_t half) {
  return (thread / 8 + 16 * i) * kPassedRow + thread % 8 * 8 + half * 4;
}

}  // namespace kinora::cuda
