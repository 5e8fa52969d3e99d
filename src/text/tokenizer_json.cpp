// Reads tokenizer.json. Vocabulary and merges, which are most of the file, are taken straight from the parser's events;
// the rest becomes a small JSON document.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/file.h"
#include "text/bpe.h"
#include "text/sentencepiece.h"

namespace kinora {
namespace {

using Json = nlohmann::json;

constexpr size_t kLargestFile = size_t{256} << 20;
constexpr size_t kMostPieces = 2'000'000, kMostMerges = 4'000'000;

class Reader : public nlohmann::json_sax<Json> {
 public:
  explicit Reader(const std::string& name) : name_(name) {}

  Json rest = Json::object();  // everything but model.vocab and model.merges
  std::vector<std::pair<std::string, int64_t>> vocab;
  std::vector<std::pair<std::string, std::string>> merges;

  bool start_object(size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override {
    if (in_merges() && stack_.size() == 4 && pair_.size() == 2)
      merges.emplace_back(std::move(pair_[0]), std::move(pair_[1]));
    if (in_merges() && stack_.size() == 4 && pair_.size() != 2 && !pair_.empty())
      refuse("a merge must name two pieces");
    pair_.clear();
    return close();
  }
  bool key(std::string& key) override {
    keys_.back() = key;
    return true;
  }
  bool string(std::string& text) override {
    if (in_merges()) {
      if (merges.size() >= kMostMerges) refuse("too many merges");
      if (stack_.size() == 4) {
        pair_.push_back(text);
        if (pair_.size() > 2) refuse("a merge must name two pieces");
      } else {
        size_t space = text.find(' ');
        if (space == std::string::npos || space == 0 || space + 1 >= text.size())
          refuse("a merge must name two pieces");
        merges.emplace_back(text.substr(0, space), text.substr(space + 1));
      }
      return true;
    }
    return put(text);
  }
  bool number_unsigned(uint64_t value) override {
    return number(static_cast<int64_t>(std::min<uint64_t>(value, INT64_MAX)));
  }
  bool number_integer(int64_t value) override { return number(value); }
  bool number_float(double value, const std::string&) override { return put(value); }
  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool binary(Json::binary_t&) override { return false; }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    refuse("it is not valid JSON near byte " + std::to_string(position));
  }
  [[noreturn]] void refuse(const std::string& what) const {
    fail(ErrorKind::model, name_ + " cannot be used: " + what);
  }

 private:
  bool in_model(const char* part) const { return stack_.size() >= 3 && keys_[0] == "model" && keys_[1] == part; }
  bool in_vocab() const { return in_model("vocab"); }
  bool in_merges() const { return in_model("merges"); }

  bool number(int64_t value) {
    if (!in_vocab()) return put(value);
    if (stack_.size() != 3) refuse("the vocabulary is nested");
    if (vocab.size() >= kMostPieces) refuse("its vocabulary is too large");
    vocab.emplace_back(keys_.back(), value);
    return true;
  }
  template <class T>
  bool put(T&& value) {
    if (in_vocab() || in_merges()) refuse("the vocabulary or the merges hold an unexpected value");
    if (stack_.empty()) refuse("it is no JSON object");
    place(Json(std::forward<T>(value)));
    return true;
  }
  Json* place(Json value) {
    Json& parent = *stack_.back();
    if (parent.is_array()) {
      if (parent.size() > 100'000) refuse("a list is too long");
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[keys_.back()] = std::move(value));
  }
  bool open(Json fresh) {
    if (stack_.size() > 32) refuse("it is nested too deeply");
    bool inside = in_vocab() || in_merges();
    if (inside && !(in_merges() && stack_.size() == 3 && fresh.is_array()))
      refuse("the vocabulary or the merges are nested");
    Json* here = &rest;
    if (inside) {
      here = &ignored_;
    } else if (!stack_.empty()) {
      here = place(std::move(fresh));
    } else if (!fresh.is_object()) {
      refuse("it is no JSON object");
    }
    stack_.push_back(here);
    keys_.emplace_back();
    return true;
  }
  bool close() {
    stack_.pop_back();
    keys_.pop_back();
    return true;
  }

  const std::string& name_;
  std::vector<Json*> stack_;
  std::vector<std::string> keys_, pair_;
  Json ignored_;
};

std::string text_of(const Json& object, const char* key) {
  auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

bool flag_of(const Json& object, const char* key) {
  auto found = object.find(key);
  return found != object.end() && found->is_boolean() && found->get<bool>();
}

void read_normalizer(const Reader& reader, const Json& json, BpeModel& model) {
  if (json.is_null()) return;
  std::string type = text_of(json, "type");
  if (type == "Sequence" && json.contains("normalizers") && json["normalizers"].is_array()) {
    for (const Json& part : json["normalizers"]) read_normalizer(reader, part, model);
  } else if (type == "Replace" && json.contains("pattern") && json["pattern"].is_object() &&
             !text_of(json["pattern"], "String").empty()) {
    model.replacements.emplace_back(text_of(json["pattern"], "String"), text_of(json, "content"));
  } else if (type == "Prepend" && model.replacements.empty()) {
    model.prepend = text_of(json, "prepend");
  } else {
    reader.refuse("its normalizer \"" + type.substr(0, 40) + "\" is not supported (Replace, Prepend, Sequence)");
  }
}

// Only a splitter that finds nothing after normalisation is accepted, as Gemma's is.
void check_pre_tokenizer(const Reader& reader, const Json& json, const BpeModel& model) {
  if (json.is_null()) return;
  bool split = text_of(json, "type") == "Split" && json.contains("pattern") && json["pattern"].is_object();
  std::string pattern = split ? text_of(json["pattern"], "String") : "";
  bool replaced = false;
  for (const auto& [from, to] : model.replacements)
    replaced = replaced || (from == pattern && to.find(pattern) == std::string::npos);
  if (!split || !replaced)
    reader.refuse("its pre_tokenizer \"" + text_of(json, "type").substr(0, 40) + "\" is not supported");
}

void read_post_processor(const Reader& reader, const Json& json, BpeModel& model) {
  if (json.is_null()) return;
  if (text_of(json, "type") != "TemplateProcessing" || !json.contains("single") || !json["single"].is_array()) {
    reader.refuse("its post_processor \"" + text_of(json, "type").substr(0, 40) +
                  "\" is not supported (TemplateProcessing)");
  }
  bool sequence = false;
  for (const Json& part : json["single"]) {
    if (part.is_object() && part.contains("Sequence")) sequence = true;
    if (!part.is_object() || !part.contains("SpecialToken")) continue;
    auto found = model.ids.find(text_of(part["SpecialToken"], "id"));
    if (sequence || found == model.ids.end()) reader.refuse("its post_processor adds tokens that are not supported");
    model.prefix.push_back(found->second);
  }
}

void add_piece(const Reader& reader, BpeModel& model, const std::string& piece, int64_t id) {
  if (id < 0 || id >= static_cast<int64_t>(kMostPieces))
    reader.refuse("the id " + std::to_string(id) + " is out of range");
  auto at = static_cast<size_t>(id);
  if (at >= model.pieces.size()) model.pieces.resize(at + 1);
  model.pieces[at] = piece;
  model.ids[piece] = static_cast<int32_t>(id);
}

void read_added(const Reader& reader, const Json& list, BpeModel& model) {
  if (list.is_null()) return;
  if (!list.is_array()) reader.refuse("added_tokens must be a list");
  for (const Json& entry : list) {
    if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_number_integer() ||
        text_of(entry, "content").empty()) {
      reader.refuse("an added token needs an id and a content");
    }
    AddedToken token{static_cast<int32_t>(std::clamp<int64_t>(entry["id"].get<int64_t>(), -1, INT32_MAX)),
                     text_of(entry, "content"),
                     flag_of(entry, "normalized"),
                     flag_of(entry, "lstrip"),
                     flag_of(entry, "rstrip"),
                     flag_of(entry, "single_word")};
    if (token.normalized || token.single_word)
      reader.refuse("added tokens with normalized or single_word are not supported");
    add_piece(reader, model, token.content, token.id);
    model.added.push_back(std::move(token));
  }
}

}  // namespace

BpeModel parse_tokenizer_json(const std::string& text, const std::string& name) {
  Reader reader(name);
  try {
    Json::sax_parse(text, &reader);
  } catch (const Json::exception& error) {
    reader.refuse(std::string(error.what()).substr(0, 120));
  }
  Json model_json = reader.rest.value("model", Json::object());
  if (!model_json.is_object() || text_of(model_json, "type") != "BPE") reader.refuse("its model is not of type BPE");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix", "dropout"}) {
    if (model_json.contains(key) && !model_json[key].is_null() && model_json[key] != "")
      reader.refuse(std::string(key) + " is not supported");
  }
  BpeModel model;
  model.ids.reserve(reader.vocab.size() + 16);
  for (const auto& [piece, id] : reader.vocab) add_piece(reader, model, piece, id);
  model.merges.reserve(reader.merges.size());
  int32_t rank = 0;
  for (const auto& [left, right] : reader.merges) {
    auto a = model.ids.find(left), b = model.ids.find(right), whole = model.ids.find(left + right);
    if (a == model.ids.end() || b == model.ids.end() || whole == model.ids.end()) {
      reader.refuse("a merge names a piece that the vocabulary lacks (number " + std::to_string(rank) + ")");
    }
    // As Hugging Face does: of a pair named twice, the later rank holds.
    model.merges[static_cast<uint64_t>(a->second) << 32 | static_cast<uint32_t>(b->second)] = {rank++, whole->second};
  }
  model.byte_fallback = flag_of(model_json, "byte_fallback");
  model.fuse_unk = flag_of(model_json, "fuse_unk");
  model.ignore_merges = flag_of(model_json, "ignore_merges");
  read_added(reader, reader.rest.value("added_tokens", Json()), model);
  std::string unk = text_of(model_json, "unk_token");
  if (auto found = model.ids.find(unk); !unk.empty() && found != model.ids.end()) model.unk = found->second;
  read_normalizer(reader, reader.rest.value("normalizer", Json()), model);
  check_pre_tokenizer(reader, reader.rest.value("pre_tokenizer", Json()), model);
  read_post_processor(reader, reader.rest.value("post_processor", Json()), model);
  return model;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& folder) {
  std::filesystem::path json = std::filesystem::path(folder) / "tokenizer.json", model = json;
  model.replace_filename("tokenizer.model");
  if (!std::filesystem::exists(json) && std::filesystem::exists(model))
    return std::make_unique<BpeTokenizer>(parse_sentencepiece(read_file(model.string(), kLargestFile), model.string()));
  return std::make_unique<BpeTokenizer>(parse_tokenizer_json(read_file(json.string(), kLargestFile), json.string()));
}

}  // namespace kinora
