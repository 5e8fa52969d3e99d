#include "text/stages.h"

#include <algorithm>

#include "core/error.h"
#include "text/unicode.h"

namespace kinora {
namespace {

constexpr int64_t kMostPieces = 2'000'000;
constexpr const char kSpace[] = "\xe2\x96\x81";  // U+2581

// Cuts the added tokens out of `text`: the leftmost first, of those that begin at one place the longest.
// found(token) is called for each, between(part, first) for what lies between, in order.
template <class Found, class Between>
void cut_added(const Trie& trie, const std::vector<AddedToken>& added, std::string_view text, bool first, Found&& found,
               Between&& between) {
  size_t plain = 0;  // where the text not yet given out begins
  for (size_t at = 0; at < text.size();) {
    size_t length = 0;
    int32_t token = -1;
    trie.prefixes(text.substr(at), [&](size_t n, int32_t value) {
      length = n;
      token = value;
    });
    if (token < 0) {
      ++at;
      continue;
    }
    const AddedToken& match = added[static_cast<size_t>(token)];
    size_t end = at + length;
    std::string_view before = text.substr(plain, at - plain), after = text.substr(end);
    if (match.left_strip) before = trim_white_space(before, false, true);
    if (match.right_strip) end = text.size() - trim_white_space(after, true, false).size();
    if (!before.empty()) between(before, first && plain == 0);
    found(match);
    at = plain = end;
  }
  if (plain < text.size()) between(text.substr(plain), first && plain == 0);
}

}  // namespace

int32_t Stages::id_of(const std::string& piece) const {
  auto found = ids.find(piece);
  return found == ids.end() ? -1 : found->second;
}

void Stages::set_piece(const std::string& piece, int64_t id, const std::string& name) {
  if (id < 0 || id >= kMostPieces)
    fail(ErrorKind::model, name + " cannot be used: the id " + std::to_string(id) + " is out of range");
  if (static_cast<size_t>(id) >= pieces.size()) pieces.resize(static_cast<size_t>(id) + 1);
  pieces[static_cast<size_t>(id)] = piece;
  ids[piece] = static_cast<int32_t>(id);
}

StagedTokenizer::StagedTokenizer(Stages stages) : stages_(std::move(stages)) {
  std::vector<std::pair<std::string, int32_t>> raw, normalized;
  for (size_t i = 0; i < stages_.added.size(); ++i) {
    const AddedToken& token = stages_.added[i];
    std::string content = token.normalized ? normalize(token.content) : token.content;
    if (!content.empty()) (token.normalized ? normalized : raw).emplace_back(content, static_cast<int32_t>(i));
  }
  raw_ = Trie(std::move(raw));
  normalized_ = Trie(std::move(normalized));
}

std::string StagedTokenizer::normalize(std::string_view text) const {
  std::string out(text);
  for (const auto& stage : stages_.normalizers) out = stage(out);
  return out;
}

void StagedTokenizer::encode_words(std::string_view text, bool first, std::vector<int32_t>& out) const {
  std::vector<std::string> words{std::string(text)};
  for (const auto& split : stages_.splitters) {
    std::vector<std::string> next;
    for (const std::string& word : words) split(word, first && &word == words.data(), next);
    words = std::move(next);
  }
  for (const std::string& word : words) {
    if (!word.empty()) stages_.model->encode(word, out);
  }
}

std::vector<int32_t> StagedTokenizer::encode(std::string_view text, bool add_bos) const {
  check_utf8(text);
  std::vector<int32_t> out;
  auto found = [&](const AddedToken& token) { out.push_back(token.id); };
  cut_added(raw_, stages_.added, text, true, found, [&](std::string_view part, bool first) {
    std::string normal = normalize(part);
    cut_added(normalized_, stages_.added, normal, first, found,
              [&](std::string_view words, bool here) { encode_words(words, here, out); });
  });
  if (add_bos) frame(out);
  return out;
}

void StagedTokenizer::frame(std::vector<int32_t>& ids) const {
  const std::vector<int32_t>& suffix = stages_.suffix;
  bool there = stages_.suffix_once && ids.size() >= suffix.size() &&
               std::equal(suffix.begin(), suffix.end(), ids.end() - static_cast<std::ptrdiff_t>(suffix.size()));
  if (!there) ids.insert(ids.end(), suffix.begin(), suffix.end());
  ids.insert(ids.begin(), stages_.prefix.begin(), stages_.prefix.end());
}

std::vector<int32_t> StagedTokenizer::encode_padded(std::string_view text, size_t length) const {
  size_t frame_size = stages_.prefix.size() + stages_.suffix.size();
  if (length < frame_size)
    fail(ErrorKind::usage, "a text needs room for at least " + std::to_string(frame_size) + " tokens");
  std::vector<int32_t> ids = encode(text, false);
  if (ids.size() > length - frame_size) ids.resize(length - frame_size);
  frame(ids);
  ids.resize(length, std::max(stages_.pad, 0));
  return ids;
}

std::string_view StagedTokenizer::piece(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= stages_.pieces.size()) return "";
  return stages_.pieces[static_cast<size_t>(id)];
}

std::string StagedTokenizer::decode(std::span<const int32_t> ids) const {
  std::string out;
  for (int32_t id : ids) out += stages_.show(piece(id), out.empty());
  return out;
}

void split_white_space(std::string_view word, bool, std::vector<std::string>& out) {
  std::string part;
  for (char32_t c : decode_utf8(word)) {
    if (!is_white_space(c)) {
      append_utf8(part, c);
    } else if (!part.empty()) {
      out.push_back(std::move(part));
      part.clear();
    }
  }
  if (!part.empty()) out.push_back(std::move(part));
}

Stages::Splitter metaspace(Prepend prepend, bool split) {
  return [=](std::string_view word, bool first, std::vector<std::string>& out) {
    std::string text;
    for (char c : word) c == ' ' ? text += kSpace : text += c;
    bool wanted = prepend == Prepend::always || (prepend == Prepend::first && first);
    if (wanted && !text.starts_with(kSpace)) text = kSpace + text;
    for (size_t at = 0; split && at < text.size();) {
      size_t next = std::min(text.find(kSpace, at + 1), text.size());
      if (next == text.size()) {
        text.erase(0, at);
        break;
      }
      out.push_back(text.substr(at, next - at));
      at = next;
    }
    out.push_back(std::move(text));
  };
}

}  // namespace kinora
