// Canonical decomposition and composition (Unicode Standard Annex 15).
#include <algorithm>

#include "text/unicode.h"
#include "text/unicode_data.h"

namespace kinora {
namespace {

// Hangul syllables are computed: leads · vowels · trails, the first trail standing for none.
constexpr char32_t kSyllables = 0xac00, kLeads = 0x1100, kVowels = 0x1161, kTrails = 0x11a7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTrailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTrailCount;

uint8_t combining_class(char32_t c) {
  auto range = std::upper_bound(kCombining.begin(), kCombining.end(), c,
                                [](char32_t v, const CombiningRange& r) { return v < r.first; });
  return range != kCombining.begin() && c <= (--range)->last ? range->combining_class : 0;
}

void decompose(char32_t c, std::u32string& out) {
  if (c >= kSyllables && c < kSyllables + kSyllableCount) {
    char32_t index = c - kSyllables, trail = index % kTrailCount;
    out.push_back(kLeads + index / (kVowelCount * kTrailCount));
    out.push_back(kVowels + index / kTrailCount % kVowelCount);
    if (trail) out.push_back(kTrails + trail);
    return;
  }
  auto found = std::lower_bound(kDecompositions.begin(), kDecompositions.end(), c,
                                [](const Decomposition& d, char32_t v) { return d.code < v; });
  if (found == kDecompositions.end() || found->code != c) return out.push_back(c);
  decompose(found->first, out);
  if (found->second) decompose(found->second, out);
}

// The character that both become, or 0.
char32_t compose(char32_t a, char32_t b) {
  if (a >= kLeads && a < kLeads + kLeadCount && b >= kVowels && b < kVowels + kVowelCount)
    return kSyllables + ((a - kLeads) * kVowelCount + (b - kVowels)) * kTrailCount;
  if (a >= kSyllables && a < kSyllables + kSyllableCount && (a - kSyllables) % kTrailCount == 0 && b > kTrails &&
      b < kTrails + kTrailCount)
    return a + (b - kTrails);
  static const std::vector<Decomposition> pairs = [] {
    std::vector<Decomposition> list;
    for (const Decomposition& d : kDecompositions) {
      if (d.composes) list.push_back(d);
    }
    std::sort(list.begin(), list.end(), [](const Decomposition& x, const Decomposition& y) {
      return x.first != y.first ? x.first < y.first : x.second < y.second;
    });
    return list;
  }();
  auto found = std::lower_bound(pairs.begin(), pairs.end(), b, [a](const Decomposition& d, char32_t v) {
    return d.first != a ? d.first < a : d.second < v;
  });
  return found != pairs.end() && found->first == a && found->second == b ? found->code : 0;
}

}  // namespace

bool in_ranges(std::span<const CharRange> ranges, char32_t code) {
  auto range =
      std::upper_bound(ranges.begin(), ranges.end(), code, [](char32_t v, const CharRange& r) { return v < r.first; });
  return range != ranges.begin() && code <= (--range)->last;
}

std::string to_nfc(std::string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; }))
    return std::string(text);
  std::u32string in;
  for (char32_t c : decode_utf8(text)) decompose(c, in);
  for (size_t i = 0; i < in.size();) {  // marks between two starters go in the order of their classes
    size_t end = i;
    while (end < in.size() && combining_class(in[end])) ++end;
    std::stable_sort(in.begin() + static_cast<std::ptrdiff_t>(i), in.begin() + static_cast<std::ptrdiff_t>(end),
                     [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); });
    i = end + 1;
  }
  std::u32string out;
  size_t starter = std::u32string::npos;
  int last = -1;  // class of the mark kept last since the starter; -1: none
  for (char32_t c : in) {
    int rank = combining_class(c);
    if (starter != std::u32string::npos && (last < rank || last == -1)) {
      if (char32_t joined = compose(out[starter], c)) {
        out[starter] = joined;
        continue;
      }
    }
    if (rank == 0) {
      starter = out.size();
      last = -1;
    } else {
      last = rank;
    }
    out.push_back(c);
  }
  std::string bytes;
  for (char32_t c : out) append_utf8(bytes, c);
  return bytes;
}

}  // namespace kinora
