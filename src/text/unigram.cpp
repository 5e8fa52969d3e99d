#include "text/unigram.h"

#include <algorithm>
#include <cfloat>
#include <cstdio>
#include <limits>

#include "core/error.h"
#include "text/unicode.h"

namespace kinora {
namespace {

constexpr double kUnkPenalty = 10;
constexpr const char kSpace[] = "\xe2\x96\x81";  // U+2581

int byte_of_piece(std::string_view piece) {
  unsigned byte = 0;
  bool is = piece.size() == 6 && piece.starts_with("<0x") && piece[5] == '>' &&
            std::sscanf(std::string(piece).c_str(), "<0x%2X>", &byte) == 1;
  return is ? static_cast<int>(byte) : -1;
}

}  // namespace

UnigramModel::UnigramModel(const UnigramSpec& spec)
    : unk_(spec.unk), bytes_(spec.byte_fallback), single_(spec.sentencepiece_arithmetic) {
  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  std::vector<std::pair<std::string, int32_t>> entries;
  double lowest = std::numeric_limits<double>::infinity(), highest = FLT_MIN;
  for (size_t i = 0; i < spec.pieces.size(); ++i) {
    const UnigramSpec::Piece& piece = spec.pieces[i];
    auto id = static_cast<int32_t>(i);
    pieces_.push_back({piece.score, piece.kind == UnigramSpec::Kind::whole});
    if (int byte = byte_of_piece(piece.text); byte >= 0) byte_ids_[byte] = id;
    if (piece.kind != UnigramSpec::Kind::unseen) entries.emplace_back(piece.text, id);
    if (single_ && piece.kind != UnigramSpec::Kind::normal) continue;
    lowest = std::min(lowest, piece.score);
    highest = std::max(highest, piece.score);
  }
  trie_ = Trie(std::move(entries));
  whole_score_ = highest;
  unk_score_ = single_ ? static_cast<float>(lowest) - static_cast<float>(kUnkPenalty) : lowest - kUnkPenalty;
}

void UnigramModel::encode(std::string_view word, std::vector<int32_t>& out) const {
  struct Best {  // of the ways to split the text up to here
    double score = 0;
    int32_t id = -1;
    size_t begin = 0;  // of the last piece
  };
  std::vector<Best> best(word.size() + 1);
  auto consider = [&](size_t begin, size_t end, int32_t id, double score) {
    if (best[end].id >= 0 && !(score > best[end].score)) return;
    best[end] = {single_ ? static_cast<float>(score) : score, id, begin};
  };
  for (size_t at = 0; at < word.size();) {
    size_t n = std::min(utf8_length(static_cast<unsigned char>(word[at])), word.size() - at);
    bool known = false;  // the character by itself
    trie_.prefixes(word.substr(at), [&](size_t length, int32_t id) {
      const Scored& piece = pieces_[static_cast<size_t>(id)];
      double score = piece.whole ? static_cast<double>(length) * whole_score_ - 0.1 : piece.score;
      consider(at, at + length, id, score + best[at].score);
      known = known || length == n;
    });
    if (!known) {
      double score = unk_score_ + best[at].score;
      consider(at, at + n, unk_, single_ ? static_cast<float>(score) : score);
    }
    at += n;
  }
  std::vector<std::pair<size_t, int32_t>> reversed;  // (begin, id)
  for (size_t end = word.size(); end > 0; end = best[end].begin) reversed.emplace_back(best[end].begin, best[end].id);
  for (size_t i = reversed.size(); i-- > 0;) {
    auto [begin, id] = reversed[i];
    size_t end = i > 0 ? reversed[i - 1].first : word.size();
    if (id != unk_) {
      out.push_back(id);
      continue;
    }
    while (i > 0 && reversed[i - 1].second == unk_) end = --i > 0 ? reversed[i - 1].first : word.size();
    std::string_view run = word.substr(begin, end - begin);
    auto id_of_byte = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)]; };
    if (bytes_ && std::all_of(run.begin(), run.end(), [&](char c) { return id_of_byte(c) >= 0; })) {
      for (char c : run) out.push_back(id_of_byte(c));
    } else {
      out.push_back(unk_);
    }
  }
}

std::string normalize_as_sentencepiece(std::string_view text, const CharsMap& map, const Trie& whole,
                                       const SpaceRules& rules) {
  // What stands for the beginning of the text, and how many of its bytes that takes.
  auto prefix = [&]() -> std::pair<std::string_view, size_t> {
    size_t length = 0;
    whole.prefixes(text, [&](size_t n, int32_t) { length = n; });
    if (length) return {text.substr(0, length), length};
    if (auto hit = map.longest(text)) return {hit->second, hit->first};
    length = std::min(utf8_length(static_cast<unsigned char>(text[0])), text.size());
    return {text.substr(0, length), length};
  };
  while (rules.fewer_spaces && !text.empty()) {
    auto [part, length] = prefix();
    if (part != " ") break;
    text.remove_prefix(length);
  }
  if (text.empty()) return "";
  std::string_view space = rules.escape ? kSpace : " ";
  std::string out;
  if (rules.dummy_prefix) out += space;
  bool after_space = rules.fewer_spaces;
  while (!text.empty()) {
    auto [part, length] = prefix();
    while (after_space && part.starts_with(' ')) part.remove_prefix(1);
    for (char c : part) {
      if (c == ' ') {
        out += space;
      } else {
        out += c;
      }
    }
    if (!part.empty()) after_space = rules.fewer_spaces && part.ends_with(' ');
    text.remove_prefix(length);
  }
  while (rules.fewer_spaces && out.ends_with(space)) out.resize(out.size() - space.size());
  return out;
}

std::string show_unigram_piece(std::string_view piece, bool first) {
  if (int byte = byte_of_piece(piece); byte >= 0) return {static_cast<char>(byte)};
  std::string out;
  for (size_t at = 0; at < piece.size();) {
    if (piece.substr(at).starts_with(kSpace)) {
      if (!first || at > 0) out += ' ';
      at += 3;
    } else {
      out += piece[at++];
    }
  }
  return out;
}

}  // namespace kinora
