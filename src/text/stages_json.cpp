#include "text/stages_json.h"

#include <algorithm>

#include "text/clip_bpe.h"
#include "text/unicode.h"
#include "text/unigram.h"

namespace kinora {
namespace {

using Json = nlohmann::json;
using Reader = TokenizerReader;

constexpr const char kClipWords[] = R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";
constexpr const char kClipSpecial[] = R"(<\|startoftext\|>|<\|endoftext\|>|)";

std::string type_of(const Json& json) { return text_of(json, "type").substr(0, 40); }

const Json& list_of(const Reader& reader, const Json& json, const char* key) {
  auto found = json.find(key);
  if (found == json.end() || !found->is_array()) reader.refuse(std::string(key) + " must be a list");
  return *found;
}

std::string decode_base64(const Reader& reader, const std::string& text) {
  auto value = [](char c) {
    return c >= 'A' && c <= 'Z'   ? c - 'A'
           : c >= 'a' && c <= 'z' ? c - 'a' + 26
           : c >= '0' && c <= '9' ? c - '0' + 52
           : c == '+'             ? 62
           : c == '/'             ? 63
                                  : -1;
  };
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  for (char c : text.substr(0, text.find('='))) {
    if (value(c) < 0) reader.refuse("its character map is no base64");
    bits = bits << 6 | static_cast<uint32_t>(value(c));
    if ((count += 6) >= 8) out.push_back(static_cast<char>(bits >> (count -= 8) & 0xff));
  }
  return out;
}

std::string replace_all(std::string_view text, const std::string& from, const std::string& to) {
  std::string out;
  for (size_t hit; (hit = text.find(from)) != std::string_view::npos; text.remove_prefix(hit + from.size())) {
    out += text.substr(0, hit);
    out += to;
  }
  return out += text;
}

// Two spaces or more become `to`.
std::string replace_space_runs(std::string_view text, const std::string& to) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    while (end < text.size() && text[end] == ' ') ++end;
    if (end >= at + 2) {
      out += to;
      at = end;
    } else {
      out += text[at++];
    }
  }
  return out;
}

void read_replace(const Reader& reader, const Json& json, Stages& stages) {
  Json pattern = json.value("pattern", Json::object());
  std::string text = text_of(pattern, "String"), regex = text_of(pattern, "Regex"), to = text_of(json, "content");
  if (!text.empty()) {
    stages.normalizers.emplace_back([=](std::string_view in) { return replace_all(in, text, to); });
  } else if (regex == " {2,}") {
    stages.normalizers.emplace_back([=](std::string_view in) { return replace_space_runs(in, to); });
  } else if (regex == "\\s+" && to == " ") {
    stages.normalizers.emplace_back(collapse_white_space);
  } else {
    reader.refuse("its normalizer replaces \"" + regex.substr(0, 40) + "\", which is not supported");
  }
}

void read_normalizer(const Reader& reader, const Json& json, Stages& stages) {
  if (json.is_null()) return;
  std::string type = type_of(json);
  if (type == "Sequence") {
    for (const Json& part : list_of(reader, json, "normalizers")) read_normalizer(reader, part, stages);
  } else if (type == "Precompiled") {
    std::string blob = decode_base64(reader, text_of(json, "precompiled_charsmap"));
    if (blob.empty()) return;
    auto map = std::make_shared<CharsMap>(blob, reader.name());
    stages.normalizers.emplace_back([map](std::string_view text) { return map->replace_clusters(text); });
  } else if (type == "NFC") {
    stages.normalizers.emplace_back(to_nfc);
  } else if (type == "Lowercase") {
    stages.normalizers.emplace_back(to_lower_each);
  } else if (type == "Strip") {
    bool left = flag_of(json, "strip_left"), right = flag_of(json, "strip_right");
    stages.normalizers.emplace_back(
        [=](std::string_view text) { return std::string(trim_white_space(text, left, right)); });
  } else if (type == "Replace") {
    read_replace(reader, json, stages);
  } else {
    reader.refuse("its normalizer \"" + type +
                  "\" is not supported (Precompiled, NFC, Lowercase, Strip, Replace, Sequence)");
  }
}

void read_unigram_words(const Reader& reader, const Json& json, Stages& stages) {
  if (json.is_null()) return;
  std::string type = type_of(json);
  if (type == "Sequence") {
    for (const Json& part : list_of(reader, json, "pretokenizers")) read_unigram_words(reader, part, stages);
  } else if (type == "WhitespaceSplit") {
    stages.splitters.emplace_back(split_white_space);
  } else if (type == "Metaspace" && text_of(json, "replacement") == "\xe2\x96\x81") {
    std::string scheme = text_of(json, "prepend_scheme");
    if (scheme.empty())
      scheme = !json.contains("add_prefix_space") || flag_of(json, "add_prefix_space") ? "always" : "never";
    if (scheme != "always" && scheme != "first" && scheme != "never") reader.refuse("its prepend_scheme is unknown");
    Prepend prepend = scheme == "always" ? Prepend::always : scheme == "first" ? Prepend::first : Prepend::never;
    stages.splitters.emplace_back(metaspace(prepend, !json.contains("split") || flag_of(json, "split")));
  } else {
    reader.refuse("its pre_tokenizer \"" + type + "\" is not supported (WhitespaceSplit, Metaspace, Sequence)");
  }
}

void read_clip_words(const Reader& reader, const Json& json, Stages& stages) {
  bool fits = type_of(json) == "Sequence" && list_of(reader, json, "pretokenizers").size() == 2;
  Json split = fits ? json["pretokenizers"][0] : Json::object(),
       bytes = fits ? json["pretokenizers"][1] : Json::object();
  fits = fits && split.is_object() && bytes.is_object();
  std::string pattern = fits ? text_of(split.value("pattern", Json::object()), "Regex") : "";
  bool special = pattern == std::string(kClipSpecial) + kClipWords;
  if (!fits || type_of(split) != "Split" || text_of(split, "behavior") != "Removed" || !flag_of(split, "invert") ||
      (!special && pattern != kClipWords) || type_of(bytes) != "ByteLevel" || flag_of(bytes, "add_prefix_space")) {
    reader.refuse("its pre_tokenizer is not supported (CLIP's Split and ByteLevel)");
  }
  stages.splitters = {clip_words({special, !bytes.contains("use_regex") || flag_of(bytes, "use_regex")})};
}

void read_post_processor(const Reader& reader, const Json& json, Stages& stages) {
  if (json.is_null()) return;
  auto id_of = [&](const std::string& piece) {
    int32_t id = stages.id_of(piece);
    if (id < 0) reader.refuse("its post_processor adds a token that the vocabulary lacks");
    return id;
  };
  std::string type = type_of(json);
  if (type == "RobertaProcessing") {
    for (const char* key : {"cls", "sep"}) {
      const Json& pair = list_of(reader, json, key);
      if (pair.empty() || !pair[0].is_string()) reader.refuse(std::string(key) + " must name a token");
      (key[0] == 'c' ? stages.prefix : stages.suffix).push_back(id_of(pair[0].get<std::string>()));
    }
  } else if (type == "TemplateProcessing") {
    bool after = false;
    for (const Json& part : list_of(reader, json, "single")) {
      if (part.is_object() && part.contains("Sequence")) after = true;
      if (part.is_object() && part.contains("SpecialToken") && part["SpecialToken"].is_object())
        (after ? stages.suffix : stages.prefix).push_back(id_of(text_of(part["SpecialToken"], "id")));
    }
  } else {
    reader.refuse("its post_processor \"" + type + "\" is not supported (TemplateProcessing, RobertaProcessing)");
  }
}

void read_added(const Reader& reader, const Json& list, Stages& stages) {
  if (list.is_null()) return;
  if (!list.is_array()) reader.refuse("added_tokens must be a list");
  for (const Json& entry : list) {
    if (!entry.is_object() || !entry.contains("id") || !entry["id"].is_number_integer() ||
        text_of(entry, "content").empty())
      reader.refuse("an added token needs an id and a content");
    if (flag_of(entry, "single_word")) reader.refuse("added tokens with single_word are not supported");
    stages.set_piece(text_of(entry, "content"), entry["id"].get<int64_t>(), reader.name());
    stages.added.push_back({static_cast<int32_t>(entry["id"].get<int64_t>()), text_of(entry, "content"),
                            flag_of(entry, "normalized"), flag_of(entry, "lstrip"), flag_of(entry, "rstrip"), false});
  }
}

void read_unigram(const Reader& reader, const Json& model, Stages& stages) {
  UnigramSpec spec;
  for (const auto& [piece, score] : reader.scored) {
    stages.set_piece(piece, static_cast<int64_t>(spec.pieces.size()), reader.name());
    spec.pieces.push_back({piece, score});
  }
  auto unk = model.find("unk_id");
  if (unk == model.end() || !unk->is_number_integer() || unk->get<int64_t>() < 0 ||
      unk->get<int64_t>() >= static_cast<int64_t>(spec.pieces.size()))
    reader.refuse("its unk_id is missing or outside the vocabulary");
  stages.unk = spec.unk = unk->get<int32_t>();
  spec.byte_fallback = flag_of(model, "byte_fallback");
  stages.model = std::make_shared<UnigramModel>(spec);
  stages.show = show_unigram_piece;
}

void read_clip(const Reader& reader, const Json& model, Stages& stages) {
  for (const char* key : {"continuing_subword_prefix", "dropout"}) {
    if (model.contains(key) && !model[key].is_null() && model[key] != "")
      reader.refuse(std::string(key) + " is not supported");
  }
  for (const char* key : {"byte_fallback", "ignore_merges", "fuse_unk"}) {
    if (flag_of(model, key)) reader.refuse(std::string(key) + " is not supported beside end_of_word_suffix");
  }
  for (const auto& [piece, id] : reader.vocab) stages.set_piece(piece, id, reader.name());
  ClipBpeSpec spec;
  spec.ids = stages.ids;
  spec.merges = reader.merges;
  spec.suffix = text_of(model, "end_of_word_suffix");
  stages.unk = spec.unk = stages.id_of(text_of(model, "unk_token"));
  stages.model = std::make_shared<ClipBpeModel>(spec, reader.name());
  stages.show = show_clip_piece;
}

}  // namespace

bool has_stages(const TokenizerReader& reader) {
  Json model = reader.rest.value("model", Json::object());
  return model.is_object() && (text_of(model, "type") == "Unigram" ||
                               (text_of(model, "type") == "BPE" && !text_of(model, "end_of_word_suffix").empty()));
}

Stages read_stages(const TokenizerReader& reader) {
  Json model = reader.rest.value("model", Json::object());
  bool unigram = text_of(model, "type") == "Unigram";
  Stages stages;
  unigram ? read_unigram(reader, model, stages) : read_clip(reader, model, stages);
  read_added(reader, reader.rest.value("added_tokens", Json()), stages);
  read_normalizer(reader, reader.rest.value("normalizer", Json()), stages);
  Json words = reader.rest.value("pre_tokenizer", Json());
  unigram ? read_unigram_words(reader, words, stages) : read_clip_words(reader, words, stages);
  read_post_processor(reader, reader.rest.value("post_processor", Json()), stages);
  stages.bos = stages.id_of(unigram ? "<s>" : "<|startoftext|>");
  stages.eos = stages.id_of(unigram ? "</s>" : "<|endoftext|>");
  stages.pad = unigram ? stages.id_of("<pad>") : stages.eos;
  return stages;
}

}  // namespace kinora
