#include "text/sentencepiece.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "text/unicode.h"
#include "text/unigram.h"

namespace kinora {
namespace {

constexpr size_t kMostPieces = 2'000'000, kLongestPiece = 512;
constexpr const char kSpace[] = "\xe2\x96\x81";  // U+2581, SentencePiece's visible space

[[noreturn]] void refuse(const std::string& name, const std::string& what) {
  fail(ErrorKind::model, name + " cannot be used: " + what);
}

// One protobuf message: its fields in turn, each either a number or a range of bytes.
class Message {
 public:
  Message(std::string_view file, const std::string& name) : rest_(file), name_(name) {}

  // The next field, into `field` and one of `number` and `bytes`; false at the end.
  bool next() {
    if (rest_.empty()) return false;
    uint64_t tag = varint();
    field = tag >> 3;
    bytes = {};
    number = 0;
    switch (tag & 7) {
      case 0: number = varint(); break;
      case 1: take(8); break;
      case 2: bytes = take(varint()); break;
      case 5: {
        std::string_view raw = take(4);
        uint32_t bits;
        std::memcpy(&bits, raw.data(), 4);
        number = bits;
        break;
      }
      default: refuse(name_, "it is no SentencePiece model (a field of unknown type)");
    }
    return true;
  }

  uint64_t field = 0, number = 0;
  std::string_view bytes;

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    refuse(name_, "it is no SentencePiece model (a number is too long)");
  }
  std::string_view take(uint64_t count) {
    if (count > rest_.size()) refuse(name_, "it is cut off or no SentencePiece model");
    std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view rest_;
  const std::string& name_;
};

enum PieceType : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct Piece {
  std::string text;
  float score = 0;
  uint64_t type = kNormal;
};

Piece read_piece(std::string_view bytes, const std::string& name) {
  Piece piece;
  Message message(bytes, name);
  while (message.next()) {
    if (message.field == 1) piece.text = message.bytes;
    if (message.field == 2) {
      auto bits = static_cast<uint32_t>(message.number);
      std::memcpy(&piece.score, &bits, 4);
    }
    if (message.field == 3) piece.type = message.number;
  }
  if (piece.text.empty() || piece.text.size() > kLongestPiece) refuse(name, "a piece is empty or too long");
  try {
    check_utf8(piece.text);
  } catch (const Error&) {
    refuse(name, "a piece is not valid UTF-8");
  }
  if (!(piece.score == piece.score)) refuse(name, "a piece's score is not a number");
  return piece;
}

// TrainerSpec: 3 model_type (1 unigram, 2 BPE), 35 byte_fallback, 41 bos_id.
int64_t read_trainer(std::string_view bytes, const std::string& name, BpeModel& model) {
  uint64_t type = 1;
  auto bos = int64_t{1};
  Message message(bytes, name);
  while (message.next()) {
    if (message.field == 3) type = message.number;
    if (message.field == 35) model.byte_fallback = message.number != 0;
    if (message.field == 41) bos = static_cast<int64_t>(message.number);
  }
  if (type != 2) refuse(name, "its model is not of type BPE");
  return bos;
}

// NormalizerSpec: 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces.
void read_normalizer(std::string_view bytes, const std::string& name, BpeModel& model) {
  bool dummy_prefix = true, fewer_spaces = true, escape = true;
  Message message(bytes, name);
  while (message.next()) {
    if (message.field == 2 && !message.bytes.empty())
      refuse(name, "its normalizer maps characters, which is not supported");
    if (message.field == 3) dummy_prefix = message.number != 0;
    if (message.field == 4) fewer_spaces = message.number != 0;
    if (message.field == 5) escape = message.number != 0;
  }
  if (fewer_spaces) refuse(name, "its normalizer removes spaces, which is not supported");
  if (escape) model.replacements.emplace_back(" ", kSpace);
  if (dummy_prefix) model.prepend = escape ? kSpace : " ";
}

// SentencePiece joins the neighbours whose union has the best score: every way to split a piece in two known ones is a
// merge of the piece's rank.
void derive_merges(const std::vector<Piece>& pieces, BpeModel& model) {
  std::vector<int32_t> order;
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].type == kNormal) order.push_back(static_cast<int32_t>(i));
  }
  auto score = [&](int32_t id) { return pieces[static_cast<size_t>(id)].score; };
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score(a) > score(b); });
  int32_t rank = -1;
  for (size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || score(order[i]) != score(order[i - 1])) ++rank;
    const std::string& text = pieces[static_cast<size_t>(order[i])].text;
    for (size_t at = utf8_length(static_cast<unsigned char>(text[0])); at < text.size();
         at += utf8_length(static_cast<unsigned char>(text[at]))) {
      auto left = model.ids.find(text.substr(0, at)), right = model.ids.find(text.substr(at));
      if (left == model.ids.end() || right == model.ids.end()) continue;
      if (pieces[static_cast<size_t>(left->second)].type != kNormal ||
          pieces[static_cast<size_t>(right->second)].type != kNormal)
        continue;
      model.merges[static_cast<uint64_t>(left->second) << 32 | static_cast<uint32_t>(right->second)] = {rank, order[i]};
    }
  }
}

}  // namespace

BpeModel parse_sentencepiece(std::string_view file, const std::string& name) {
  BpeModel model;
  std::vector<Piece> pieces;
  int64_t bos = -1;
  bool normalizer = false;
  Message message(file, name);
  while (message.next()) {  // ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec
    if (message.field == 1) {
      if (pieces.size() >= kMostPieces) refuse(name, "its vocabulary is too large");
      pieces.push_back(read_piece(message.bytes, name));
    }
    if (message.field == 2) bos = read_trainer(message.bytes, name, model);
    if (message.field == 3) {
      read_normalizer(message.bytes, name, model);
      normalizer = true;
    }
  }
  if (pieces.empty() || bos < 0 || !normalizer) refuse(name, "it is no complete SentencePiece model");
  for (size_t i = 0; i < pieces.size(); ++i) {
    auto id = static_cast<int32_t>(i);
    const Piece& piece = pieces[i];
    model.pieces.push_back(piece.text);
    if (!model.ids.emplace(piece.text, id).second) refuse(name, "a piece occurs twice");
    if (piece.type == kUnknown) model.unk = id;
    if (piece.type == kControl || piece.type == kUserDefined || piece.type == kUnknown)
      model.added.push_back({id, piece.text});
  }
  derive_merges(pieces, model);
  model.fuse_unk = true;
  if (bos < static_cast<int64_t>(pieces.size())) model.prefix.push_back(static_cast<int32_t>(bos));
  return model;
}

namespace {

// TrainerSpec as above and 24 treat_whitespace_as_suffix; NormalizerSpec as above.
struct UnigramFile {
  std::vector<Piece> pieces;
  bool byte_fallback = false, normalizer = false;
  CharsMap map;
  SpaceRules rules;
};

UnigramFile read_unigram_file(std::string_view file, const std::string& name) {
  UnigramFile result;
  uint64_t type = 1;
  Message message(file, name);
  while (message.next()) {
    Message part(message.bytes, name);
    if (message.field == 1) {
      if (result.pieces.size() >= kMostPieces) refuse(name, "its vocabulary is too large");
      result.pieces.push_back(read_piece(message.bytes, name));
    } else if (message.field == 2) {
      while (part.next()) {
        if (part.field == 3) type = part.number;
        if (part.field == 24 && part.number != 0) refuse(name, "it puts spaces behind words, which is not supported");
        if (part.field == 35) result.byte_fallback = part.number != 0;
      }
    } else if (message.field == 3) {
      result.normalizer = true;
      while (part.next()) {
        if (part.field == 2 && !part.bytes.empty()) result.map = CharsMap(part.bytes, name);
        if (part.field == 3) result.rules.dummy_prefix = part.number != 0;
        if (part.field == 4) result.rules.fewer_spaces = part.number != 0;
        if (part.field == 5) result.rules.escape = part.number != 0;
      }
    }
  }
  if (type != 1) refuse(name, "its model is not of type unigram");
  if (result.pieces.empty() || !result.normalizer) refuse(name, "it is no complete SentencePiece model");
  return result;
}

}  // namespace

Stages parse_t5_sentencepiece(std::string_view file, const std::string& name, int64_t extra_ids) {
  using Kind = UnigramSpec::Kind;
  UnigramFile from = read_unigram_file(file, name);
  Stages stages;
  UnigramSpec spec;
  std::vector<std::pair<std::string, int32_t>> whole;
  for (const Piece& piece : from.pieces) {
    auto id = static_cast<int32_t>(spec.pieces.size());
    if (stages.id_of(piece.text) >= 0) refuse(name, "a piece occurs twice");
    stages.set_piece(piece.text, id, name);
    bool normal = piece.type == kNormal, chosen = piece.type == kUserDefined;
    spec.pieces.push_back({piece.text, piece.score, normal ? Kind::normal : chosen ? Kind::whole : Kind::unseen});
    if (chosen) whole.emplace_back(piece.text, id);
    if (piece.type == kUnknown) spec.unk = id;
  }
  if (spec.unk < 0) refuse(name, "it has no piece for unknown characters");
  for (int64_t i = extra_ids; i-- > 0;) {
    std::string sentinel = "<extra_id_" + std::to_string(i) + ">";
    if (stages.id_of(sentinel) < 0) stages.set_piece(sentinel, static_cast<int64_t>(stages.pieces.size()), name);
    stages.added.push_back({stages.id_of(sentinel), sentinel, false, true, true});
  }
  stages.pad = stages.id_of("<pad>");
  stages.eos = stages.id_of("</s>");
  stages.bos = stages.id_of("<s>");
  stages.unk = spec.unk;
  for (int32_t id : {stages.pad, stages.eos, stages.unk}) {
    if (id >= 0) stages.added.push_back({id, stages.pieces[static_cast<size_t>(id)]});
  }
  if (stages.eos < 0) refuse(name, "it has no piece </s>");
  spec.byte_fallback = from.byte_fallback;
  spec.sentencepiece_arithmetic = true;
  stages.model = std::make_shared<UnigramModel>(spec);
  stages.normalizers = {[map = std::move(from.map), marked = Trie(std::move(whole)), rules = from.rules](
                            std::string_view text) { return normalize_as_sentencepiece(text, map, marked, rules); }};
  stages.show = show_unigram_piece;
  stages.suffix = {stages.eos};
  stages.suffix_once = true;
  return stages;
}

}  // namespace kinora
