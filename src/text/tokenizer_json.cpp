// Reads tokenizer.json of Gemma's kind, and finds the tokenizer of a folder.
#include <algorithm>
#include <filesystem>

#include "io/file.h"
#include "text/clip_bpe.h"
#include "text/sentencepiece.h"
#include "text/stages_json.h"

namespace kinora {
namespace {

using Json = nlohmann::json;
using Reader = TokenizerReader;

constexpr size_t kLargestFile = size_t{256} << 20;
constexpr size_t kMostPieces = 2'000'000;

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

BpeModel bpe_model(const Reader& reader) {
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

BpeModel parse_tokenizer_json(const std::string& text, const std::string& name) {
  Reader reader(name);
  reader.parse(text);
  return bpe_model(reader);
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& json, const std::string& name) {
  Reader reader(name);
  reader.parse(json);
  if (has_stages(reader)) return std::make_unique<StagedTokenizer>(read_stages(reader));
  return std::make_unique<BpeTokenizer>(bpe_model(reader));
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::string& folder) {
  std::filesystem::path base(folder);
  auto there = [&](const char* name) { return std::filesystem::exists(base / name); };
  auto name_of = [&](const char* name) { return (base / name).string(); };
  auto read = [&](const char* name) { return read_file(name_of(name), kLargestFile); };
  if (!there("tokenizer.json")) {
    if (there("tokenizer.model"))
      return std::make_unique<BpeTokenizer>(parse_sentencepiece(read("tokenizer.model"), name_of("tokenizer.model")));
    if (there("spiece.model"))
      return std::make_unique<StagedTokenizer>(parse_t5_sentencepiece(read("spiece.model"), name_of("spiece.model")));
    if (there("vocab.json") && there("merges.txt"))
      return std::make_unique<StagedTokenizer>(
          parse_clip_files(read("vocab.json"), name_of("vocab.json"), read("merges.txt"), name_of("merges.txt")));
  }
  return make_tokenizer(read("tokenizer.json"), name_of("tokenizer.json"));
}

}  // namespace kinora
