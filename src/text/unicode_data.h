// Tables of the Unicode character database, as far as tokenizers need them; sorted.
#pragma once

#include <cstdint>
#include <span>

namespace kinora {

struct CharRange {
  char32_t first, last;
};
struct CombiningRange {
  char32_t first, last;
  uint8_t combining_class;
};
// The canonical decomposition of one character, one step of it; `second` is 0 when it is a single character.
struct Decomposition {
  char32_t code, first, second;
  bool composes;  // first and second become `code` again in NFC
};

extern const std::span<const CharRange> kLetters, kNumbers;  // \p{L}, \p{N}
// Characters that join the cluster before them (Extend, SpacingMark, ZWJ), and those that none join (Control).
extern const std::span<const CharRange> kClusterMarks, kClusterControls;
extern const std::span<const CombiningRange> kCombining;  // of class 1 to 254
extern const std::span<const Decomposition> kDecompositions;

bool in_ranges(std::span<const CharRange> ranges, char32_t code);

}  // namespace kinora
