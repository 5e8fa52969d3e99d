#include "text/bpe.h"

#include <algorithm>
#include <cstdio>
#include <queue>

#include "core/error.h"
#include "text/unicode.h"

namespace kinora {

BpeTokenizer::BpeTokenizer(BpeModel model) : model_(std::move(model)) {
  trie_.emplace_back();
  for (size_t i = 0; i < model_.added.size(); ++i) {
    size_t at = 0;
    for (char c : model_.added[i].content) {
      auto [next, fresh] =
          trie_[at].next.try_emplace(static_cast<unsigned char>(c), static_cast<int32_t>(trie_.size()));
      size_t to = static_cast<size_t>(next->second);
      if (fresh) trie_.emplace_back();
      at = to;
    }
    if (trie_[at].token < 0) trie_[at].token = static_cast<int32_t>(i);
  }
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", b);
    byte_ids_[b] = id_of(name);
  }
}

int32_t BpeTokenizer::id_of(const std::string& piece) const {
  auto found = model_.ids.find(piece);
  return found == model_.ids.end() ? -1 : found->second;
}

std::string_view BpeTokenizer::piece(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= model_.pieces.size()) return "";
  return model_.pieces[static_cast<size_t>(id)];
}

std::string BpeTokenizer::normalize(std::string_view text) const {
  std::string out = text.empty() ? "" : model_.prepend + std::string(text);
  for (const auto& [from, to] : model_.replacements) {
    std::string next;
    size_t at = 0;
    for (size_t hit; (hit = out.find(from, at)) != std::string::npos; at = hit + from.size()) {
      next.append(out, at, hit - at);
      next += to;
    }
    next.append(out, at);
    out = std::move(next);
  }
  return out;
}

// By a heap over a linked list.
void apply_merges(const BpeMerges& merges, std::vector<int32_t>& symbols) {
  struct Candidate {
    int32_t rank, left;
    int32_t left_id, right_id, result;
    bool operator>(const Candidate& o) const { return rank != o.rank ? rank > o.rank : left > o.left; }
  };
  auto count = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> previous(symbols.size()), next(symbols.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap;
  auto consider = [&](int32_t left) {
    if (left < 0 || next[static_cast<size_t>(left)] >= count) return;
    int32_t a = symbols[static_cast<size_t>(left)], b = symbols[static_cast<size_t>(next[static_cast<size_t>(left)])];
    if (a < 0 || b < 0) return;
    auto found = merges.find(static_cast<uint64_t>(a) << 32 | static_cast<uint32_t>(b));
    if (found != merges.end()) heap.push({found->second.rank, left, a, b, found->second.result});
  };
  for (int32_t i = 0; i < count; ++i) {
    previous[static_cast<size_t>(i)] = i - 1;
    next[static_cast<size_t>(i)] = i + 1;
  }
  for (int32_t i = 0; i + 1 < count; ++i) consider(i);
  constexpr int32_t kGone = -2;
  while (!heap.empty()) {
    Candidate c = heap.top();
    heap.pop();
    auto left = static_cast<size_t>(c.left);
    if (symbols[left] != c.left_id || next[left] >= count) continue;
    auto right = static_cast<size_t>(next[left]);
    if (symbols[right] != c.right_id) continue;
    symbols[left] = c.result;
    symbols[right] = kGone;
    next[left] = next[right];
    if (next[right] < count) previous[static_cast<size_t>(next[right])] = c.left;
    consider(previous[left]);
    consider(c.left);
  }
  std::erase(symbols, kGone);
}

void BpeTokenizer::encode_part(std::string_view raw, std::vector<int32_t>& out) const {
  if (raw.empty()) return;
  std::string text = normalize(raw);
  if (model_.ignore_merges) {
    if (int32_t whole = id_of(text); whole >= 0) return out.push_back(whole);
  }
  std::vector<int32_t> symbols;
  bool after_unknown = false;
  for (size_t at = 0; at < text.size();) {
    size_t n = std::min(utf8_length(static_cast<unsigned char>(text[at])), text.size() - at);
    int32_t id = id_of(text.substr(at, n));
    bool unknown = false;
    if (id >= 0) {
      symbols.push_back(id);
    } else {
      bool bytes = model_.byte_fallback;
      for (size_t i = 0; bytes && i < n; ++i) bytes = byte_ids_[static_cast<unsigned char>(text[at + i])] >= 0;
      for (size_t i = 0; bytes && i < n; ++i) symbols.push_back(byte_ids_[static_cast<unsigned char>(text[at + i])]);
      unknown = !bytes;
      if (unknown && model_.unk >= 0 && !(after_unknown && model_.fuse_unk)) symbols.push_back(model_.unk);
    }
    after_unknown = unknown;
    at += n;
  }
  apply_merges(model_.merges, symbols);
  out.insert(out.end(), symbols.begin(), symbols.end());
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, bool add_bos) const {
  check_utf8(text);
  std::vector<int32_t> out;
  if (add_bos) out = model_.prefix;
  size_t plain = 0;  // where the text not yet encoded begins
  for (size_t at = 0; at < text.size();) {
    size_t node = 0, length = 0;
    int32_t token = -1;
    for (size_t i = at; i < text.size(); ++i) {
      auto next = trie_[node].next.find(static_cast<unsigned char>(text[i]));
      if (next == trie_[node].next.end()) break;
      node = static_cast<size_t>(next->second);
      if (trie_[node].token >= 0) {
        token = trie_[node].token;
        length = i - at + 1;
      }
    }
    if (token < 0) {
      ++at;
      continue;
    }
    const AddedToken& added = model_.added[static_cast<size_t>(token)];
    size_t end = at + length, begin = at;
    while (added.left_strip && begin > plain && text[begin - 1] == ' ') --begin;
    while (added.right_strip && end < text.size() && text[end] == ' ') ++end;
    encode_part(text.substr(plain, begin - plain), out);
    out.push_back(added.id);
    at = plain = end;
  }
  encode_part(text.substr(plain), out);
  return out;
}

std::vector<int32_t> Tokenizer::encode_padded(std::string_view text, size_t length) const {
  std::vector<int32_t> ids = encode(text);
  ids.resize(length, std::max(pad_id(), 0));
  return ids;
}

std::string BpeTokenizer::decode(std::span<const int32_t> ids) const {
  std::string out;
  for (int32_t id : ids) {
    std::string piece_text(piece(id));
    unsigned byte = 0;
    if (piece_text.size() == 6 && std::sscanf(piece_text.c_str(), "<0x%2X>", &byte) == 1) {
      out.push_back(static_cast<char>(byte));
      continue;
    }
    for (size_t at = 0; at < piece_text.size();) {
      if (piece_text.compare(at, 3, "\xe2\x96\x81") == 0) {
        out.push_back(' ');
        at += 3;
      } else {
        out.push_back(piece_text[at++]);
      }
    }
  }
  return out;
}

}  // namespace kinora
