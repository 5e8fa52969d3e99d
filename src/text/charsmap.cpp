#include "text/charsmap.h"

#include <cstring>

#include "core/error.h"
#include "text/unicode.h"
#include "text/unicode_data.h"

namespace kinora {
namespace {

constexpr size_t kClusterLimit = 6;  // bytes; longer clusters are taken apart

// Bytes of the grapheme cluster at the start of `text`. Of the rules of Unicode Standard Annex 29 these are the ones
// that make clusters of several characters shorter than kClusterLimit; others join only longer ones, or characters
// that no map has as keys.
size_t cluster_length(std::string_view text) {
  auto code_at = [&](size_t at) {
    size_t n = std::min(utf8_length(static_cast<unsigned char>(text[at])), text.size() - at);
    return std::pair(decode_utf8(text.substr(at, n))[0], n);
  };
  if (text.starts_with("\r\n")) return 2;
  auto [first, length] = code_at(0);
  if (in_ranges(kClusterControls, first)) return length;
  while (length < text.size()) {
    auto [code, n] = code_at(length);
    if (!in_ranges(kClusterMarks, code)) break;
    length += n;
  }
  return length;
}

}  // namespace

CharsMap::CharsMap(std::string_view blob, const std::string& name) {
  uint32_t bytes = 0;
  if (blob.size() >= 4) std::memcpy(&bytes, blob.data(), 4);
  if (blob.size() < 4 || bytes % 4 != 0 || bytes < 4 || bytes > blob.size() - 4)
    fail(ErrorKind::model, name + " cannot be used: its character map is damaged");
  units_.resize(bytes / 4);
  std::memcpy(units_.data(), blob.data() + 4, bytes);
  replacements_ = blob.substr(4 + bytes);
  replacements_.push_back('\0');
}

std::string_view CharsMap::replacement(uint32_t at) const {
  return at < replacements_.size() ? std::string_view(replacements_.c_str() + at) : std::string_view();
}

// Calls found(length, place of the replacement) for each key that the text begins with; stops when it returns false.
// A unit that points outside the array ends the search.
template <class F>
void CharsMap::matches(std::string_view text, F&& found) const {
  auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  if (units_.empty()) return;
  uint32_t at = offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    auto byte = static_cast<unsigned char>(text[i]);
    at ^= byte;
    if (byte == 0 || at >= units_.size()) return;
    uint32_t unit = units_[at];
    if ((unit & (1u << 31 | 0xff)) != byte) return;
    at ^= offset(unit);
    if (at >= units_.size()) return;
    if ((unit >> 8 & 1) && !found(i + 1, units_[at] & 0x7fffffff)) return;
  }
}

std::optional<std::pair<size_t, std::string_view>> CharsMap::longest(std::string_view text) const {
  std::optional<std::pair<size_t, std::string_view>> best;
  matches(text, [&](size_t length, uint32_t at) {
    best = {length, replacement(at)};
    return true;
  });
  return best;
}

std::optional<std::pair<size_t, std::string_view>> CharsMap::shortest(std::string_view text) const {
  std::optional<std::pair<size_t, std::string_view>> first;
  matches(text, [&](size_t length, uint32_t at) {
    first = {length, replacement(at)};
    return false;
  });
  return first;
}

std::string CharsMap::replace_clusters(std::string_view text) const {
  std::string out;
  while (!text.empty()) {
    size_t length = cluster_length(text);
    std::string_view cluster = text.substr(0, length);
    text.remove_prefix(length);
    if (length < kClusterLimit) {
      if (auto hit = shortest(cluster)) {
        out += hit->second;
        continue;
      }
    }
    while (!cluster.empty()) {
      size_t n = std::min(utf8_length(static_cast<unsigned char>(cluster[0])), cluster.size());
      auto hit = shortest(cluster.substr(0, n));
      out += hit ? hit->second : cluster.substr(0, n);
      cluster.remove_prefix(n);
    }
  }
  return out;
}

}  // namespace kinora
