#include "text/clip_bpe.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "text/tokenizer_reader.h"
#include "text/unicode.h"
#include "text/unicode_data.h"

namespace kinora {
namespace {

constexpr const char kBos[] = "<|startoftext|>", kEos[] = "<|endoftext|>";

// GPT-2's alphabet: bytes that print stand for themselves, the others for characters from U+0100 on.
const std::array<std::string, 256>& byte_alphabet() {
  static const std::array<std::string, 256> alphabet = [] {
    std::array<std::string, 256> names;
    char32_t next = 0x100;
    for (char32_t b = 0; b < 256; ++b) {
      bool prints = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      append_utf8(names[b], prints ? b : next++);
    }
    return names;
  }();
  return alphabet;
}

// Length of the piece at the start of `word` by CLIP's pattern (`runs`: by GPT-2's, where digits run on); 0 for space.
size_t word_length(std::u32string_view word, bool special_words, bool runs) {
  auto begins = [&](std::u32string_view with) { return word.substr(0, with.size()) == with; };
  if (special_words) {
    for (std::u32string_view special : {U"<|startoftext|>", U"<|endoftext|>"}) {
      if (begins(special)) return special.size();
    }
  }
  for (std::u32string_view end : {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"}) {
    if (begins(end)) return end.size();
  }
  auto kind = [](char32_t c) {
    return in_ranges(kLetters, c) ? 'l' : in_ranges(kNumbers, c) ? 'n' : is_white_space(c) ? ' ' : 'o';
  };
  char first = kind(word[0]);
  if (first == ' ') return 0;
  if (first == 'n' && !runs) return 1;
  size_t length = 1;
  while (length < word.size() && kind(word[length]) == first) ++length;
  return length;
}

std::string to_utf8(std::u32string_view text) {
  std::string out;
  for (char32_t c : text) append_utf8(out, c);
  return out;
}

}  // namespace

ClipBpeModel::ClipBpeModel(const ClipBpeSpec& spec, const std::string& name) : unk_(spec.unk) {
  auto id_of = [&](const std::string& piece) {
    auto found = spec.ids.find(piece);
    return found == spec.ids.end() ? -1 : found->second;
  };
  for (size_t b = 0; b < 256; ++b) {
    inner_[b] = id_of(byte_alphabet()[b]);
    last_[b] = id_of(byte_alphabet()[b] + spec.suffix);
  }
  int32_t rank = 0;
  for (const auto& [left, right] : spec.merges) {
    int32_t a = id_of(left), b = id_of(right), whole = id_of(left + right);
    if (a < 0 || b < 0 || whole < 0) {
      fail(ErrorKind::model, name + " cannot be used: a merge names a piece that the vocabulary lacks (number " +
                                 std::to_string(rank) + ")");
    }
    merges_[static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b)] = {rank++, whole};
  }
}

void ClipBpeModel::encode(std::string_view word, std::vector<int32_t>& out) const {
  std::vector<int32_t> symbols;
  for (size_t i = 0; i < word.size(); ++i) {
    int32_t id = (i + 1 < word.size() ? inner_ : last_)[static_cast<unsigned char>(word[i])];
    if (id >= 0 || unk_ >= 0) symbols.push_back(id >= 0 ? id : unk_);
  }
  apply_merges(merges_, symbols);
  out.insert(out.end(), symbols.begin(), symbols.end());
}

Stages::Splitter clip_words(const ClipWords& options) {
  return [=](std::string_view text, bool, std::vector<std::string>& out) {
    std::u32string codes = decode_utf8(text);
    std::u32string_view rest = codes;
    while (!rest.empty()) {
      size_t length = word_length(rest, options.special_words, false);
      std::u32string_view word = rest.substr(0, length);
      rest.remove_prefix(std::max<size_t>(length, 1));
      while (options.again && !word.empty()) {
        size_t part = word_length(word, false, true);
        out.push_back(to_utf8(word.substr(0, part)));
        word.remove_prefix(part);
      }
      if (!word.empty()) out.push_back(to_utf8(word));
    }
  };
}

std::string collapse_white_space(std::string_view text) {
  std::string out;
  bool after_space = false;
  for (char32_t c : decode_utf8(text)) {
    bool space = is_white_space(c);
    if (!space) append_utf8(out, c);
    if (space && !after_space) out += ' ';
    after_space = space;
  }
  return out;
}

Stages parse_clip_files(const std::string& vocab, const std::string& vocab_name, const std::string& merges,
                        const std::string& merges_name) {
  Stages stages;
  for (const auto& [piece, id] : read_vocabulary(vocab, vocab_name)) stages.set_piece(piece, id, vocab_name);
  ClipBpeSpec spec;
  for (size_t at = 0; at < merges.size();) {
    size_t end = std::min(merges.find('\n', at), merges.size());
    std::string line = merges.substr(at, end - at);
    at = end + 1;
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || line.starts_with("#version")) continue;
    size_t space = line.find(' ');
    if (space == std::string::npos || space == 0 || line.find(' ', space + 1) != std::string::npos ||
        space + 1 == line.size())
      fail(ErrorKind::model, merges_name + " cannot be used: a merge must name two pieces");
    spec.merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  stages.bos = stages.id_of(kBos);
  stages.eos = stages.pad = stages.unk = stages.id_of(kEos);
  if (stages.bos < 0 || stages.eos < 0)
    fail(ErrorKind::model, vocab_name + " cannot be used: it lacks " + kBos + " or " + kEos);
  stages.added = {{stages.bos, kBos}, {stages.eos, kEos}};
  spec.ids = stages.ids;
  spec.unk = stages.unk;
  stages.model = std::make_shared<ClipBpeModel>(spec, merges_name);
  stages.normalizers = {to_nfc, collapse_white_space, to_lower_each};
  stages.splitters = {clip_words({})};
  stages.show = show_clip_piece;
  stages.prefix = {stages.bos};
  stages.suffix = {stages.eos};
  return stages;
}

std::string show_clip_piece(std::string_view piece, bool) {
  static const Trie bytes = [] {
    std::vector<std::pair<std::string, int32_t>> entries;
    for (size_t b = 0; b < 256; ++b) entries.emplace_back(byte_alphabet()[b], static_cast<int32_t>(b));
    return Trie(std::move(entries));
  }();
  if (piece == kBos || piece == kEos) return std::string(piece);
  bool ends = piece.ends_with("</w>");
  if (ends) piece.remove_suffix(4);
  std::string out;
  while (!piece.empty()) {
    size_t length = 0;
    bytes.prefixes(piece, [&](size_t n, int32_t byte) {
      length = n;
      out += static_cast<char>(byte);
    });
    if (length == 0) out += piece[0];
    piece.remove_prefix(std::max<size_t>(length, 1));
  }
  return ends ? out + ' ' : out;
}

}  // namespace kinora
