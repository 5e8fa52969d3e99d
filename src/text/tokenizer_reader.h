// Reads tokenizer.json and vocab.json. For the files of src/text alone.
#pragma once

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/error.h"

namespace kinora {

// Vocabulary and merges, which are most of a file, are taken straight from the parser's events; the rest becomes a
// small JSON document.
class TokenizerReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Json = nlohmann::json;
  // `bare`: the file is the vocabulary alone, as vocab.json.
  explicit TokenizerReader(const std::string& name, bool bare = false) : name_(name), bare_(bare) {}
  void parse(const std::string& text) {
    try {
      Json::sax_parse(text, this);
    } catch (const Json::exception& error) {
      refuse(std::string(error.what()).substr(0, 120));
    }
  }
  const std::string& name() const { return name_; }

  Json rest = Json::object();  // everything but model.vocab and model.merges
  std::vector<std::pair<std::string, int64_t>> vocab;
  std::vector<std::pair<std::string, double>> scored;  // the vocabulary of a unigram model
  std::vector<std::pair<std::string, std::string>> merges;

  bool start_object(size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override {
    if (in_scored()) {
      if (pair_.size() != 1 || !score_) refuse("a piece needs a text and a score");
      if (scored.size() >= kMostPieces) refuse("its vocabulary is too large");
      scored.emplace_back(std::move(pair_[0]), *score_);
      score_.reset();
    }
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
    if (in_scored()) {
      if (!pair_.empty()) refuse("a piece needs one text");
      pair_.push_back(text);
      return true;
    }
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
  bool number_float(double value, const std::string&) override {
    if (!in_scored()) return put(value);
    score_ = value;
    return true;
  }
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
  static constexpr size_t kMostPieces = 2'000'000, kMostMerges = 4'000'000;

  bool in_model(const char* part) const { return stack_.size() >= 3 && keys_[0] == "model" && keys_[1] == part; }
  bool in_vocab() const { return bare_ ? !stack_.empty() : in_model("vocab"); }
  bool in_merges() const { return !bare_ && in_model("merges"); }
  bool in_scored() const { return !bare_ && in_vocab() && stack_.size() == 4; }

  bool number(int64_t value) {
    if (in_scored()) {
      score_ = static_cast<double>(value);
      return true;
    }
    if (!in_vocab()) return put(value);
    if (!stack_.back()->is_object()) refuse("the vocabulary holds a number without a piece");
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
    bool list_in_list = !bare_ && stack_.size() == 3 && fresh.is_array() && stack_.back()->is_array();
    if (inside && !list_in_list) refuse("the vocabulary or the merges are nested");
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

  std::string name_;
  bool bare_;
  std::optional<double> score_;
  std::vector<Json*> stack_;
  std::vector<std::string> keys_, pair_;
  Json ignored_;
};

inline std::string text_of(const nlohmann::json& object, const char* key) {
  auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

inline bool flag_of(const nlohmann::json& object, const char* key) {
  auto found = object.find(key);
  return found != object.end() && found->is_boolean() && found->get<bool>();
}

// vocab.json's pieces and ids. Throws Error(model) naming `name`.
inline std::vector<std::pair<std::string, int64_t>> read_vocabulary(const std::string& text, const std::string& name) {
  TokenizerReader reader(name, true);
  reader.parse(text);
  return std::move(reader.vocab);
}

}  // namespace kinora
