#include "io/config.h"

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"

namespace kinora {

using Json = nlohmann::json;

struct Config::Body {
  Json json;
};

namespace {

constexpr size_t kLargest = size_t{16} << 20;
constexpr int kDeepest = 64;

std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(ErrorKind::io, "cannot read " + path + " (is the model folder complete?)");
  std::string text;
  char block[65536];
  while (file.read(block, sizeof block) || file.gcount() > 0) {
    text.append(block, static_cast<size_t>(file.gcount()));
    if (text.size() > kLargest) fail(ErrorKind::model, path + " is larger than 16 MiB; that is no config file");
  }
  return text;
}

// Python writes Infinity and NaN, which are no JSON (diffusers' scheduler configs hold -Infinity); they become null.
std::string without_python_numbers(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  bool inside = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (inside && text[i] == '\\' && i + 1 < text.size()) {
      out += text[i++];
    } else if (text[i] == '"') {
      inside = !inside;
    }
    const char* found = nullptr;
    for (const char* word : {"-Infinity", "Infinity", "NaN"}) {
      if (!inside && !found && text.compare(i, std::strlen(word), word) == 0) found = word;
    }
    if (found) {
      out += "null";
      i += std::strlen(found) - 1;
    } else {
      out += text[i];
    }
  }
  return out;
}

[[noreturn]] void wrong(const std::string& file, const std::string& key, const std::string& expected, const Json& got) {
  std::string shown = got.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 60);
  fail(ErrorKind::model, file + ": \"" + key + "\" must be " + expected + ", not " + shown);
}

int64_t as_integer(const std::string& file, const std::string& key, const Json& value, int64_t low, int64_t high) {
  std::string expected = "a whole number from " + std::to_string(low) + " to " + std::to_string(high);
  if (!value.is_number_integer()) wrong(file, key, expected, value);
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))
    wrong(file, key, expected, value);
  int64_t number = value.get<int64_t>();
  if (number < low || number > high) wrong(file, key, expected, value);
  return number;
}

}  // namespace

Config Config::load(const std::string& path) { return parse(read_text(path), path); }

Config Config::parse(const std::string& text, const std::string& name) {
  std::vector<std::set<std::string>> seen;
  Json::parser_callback_t guard = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kDeepest) fail(ErrorKind::model, name + " is nested too deeply");
    if (event == Json::parse_event_t::object_start) seen.emplace_back();
    if (event == Json::parse_event_t::object_end) seen.pop_back();
    if (event == Json::parse_event_t::key && !seen.back().insert(value.get<std::string>()).second) {
      fail(ErrorKind::model, name + " names \"" + value.get<std::string>().substr(0, 60) + "\" twice");
    }
    return true;
  };
  Config config;
  config.name_ = name;
  auto body = std::make_shared<Body>();
  try {
    body->json = Json::parse(without_python_numbers(text), guard);
  } catch (const Json::exception& error) {
    fail(ErrorKind::model, name + " is not valid JSON (" + std::string(error.what()).substr(0, 160) + ")");
  }
  if (!body->json.is_object()) fail(ErrorKind::model, name + " must hold a JSON object");
  config.body_ = body;
  return config;
}

bool Config::has(const std::string& key) const { return body_->json.contains(key) && !body_->json[key].is_null(); }

int64_t Config::integer(const std::string& key, int64_t low, int64_t high) const {
  if (!has(key)) fail(ErrorKind::model, name_ + ": \"" + key + "\" is missing");
  return as_integer(name_, key, body_->json[key], low, high);
}

int64_t Config::integer(const std::string& key, int64_t low, int64_t high, int64_t fallback) const {
  return has(key) ? integer(key, low, high) : fallback;
}

std::optional<double> Config::optional_real(const std::string& key, double low, double high) const {
  if (!has(key)) return std::nullopt;
  const Json& value = body_->json[key];
  if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
    char range[80];
    std::snprintf(range, sizeof range, "a number from %g to %g", low, high);
    wrong(name_, key, range, value);
  }
  return value.get<double>();
}

double Config::real(const std::string& key, double low, double high, double fallback) const {
  return optional_real(key, low, high).value_or(fallback);
}

bool Config::boolean(const std::string& key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!body_->json[key].is_boolean()) wrong(name_, key, "true or false", body_->json[key]);
  return body_->json[key].get<bool>();
}

std::string Config::text(const std::string& key, const std::string& fallback) const {
  if (!has(key)) return fallback;
  if (!body_->json[key].is_string()) wrong(name_, key, "a text", body_->json[key]);
  return body_->json[key].get<std::string>();
}

std::vector<bool> Config::booleans(const std::string& key, std::vector<bool> fallback) const {
  if (!has(key)) return fallback;
  const Json& list = body_->json[key];
  if (!list.is_array() || list.size() > 64) wrong(name_, key, "a list of at most 64 times true or false", list);
  std::vector<bool> result;
  for (const Json& value : list) {
    if (!value.is_boolean()) wrong(name_, key, "a list of true and false", list);
    result.push_back(value.get<bool>());
  }
  return result;
}

std::vector<int64_t> Config::integers(const std::string& key, int64_t low, int64_t high,
                                      std::vector<int64_t> fallback) const {
  if (!has(key)) return fallback;
  const Json& list = body_->json[key];
  if (!list.is_array() || list.size() > 64) wrong(name_, key, "a list of at most 64 numbers", list);
  std::vector<int64_t> result;
  for (const Json& value : list) result.push_back(as_integer(name_, key, value, low, high));
  return result;
}

std::vector<std::string> Config::texts(const std::string& key, size_t count, const std::string& fallback) const {
  if (!has(key)) return std::vector<std::string>(count, fallback);
  const Json& list = body_->json[key];
  if (list.is_string()) return std::vector<std::string>(count, list.get<std::string>());
  std::vector<std::string> result;
  bool good = list.is_array() && list.size() == count;
  for (size_t i = 0; good && i < count; ++i) {
    good = list[i].is_string();
    if (good) result.push_back(list[i].get<std::string>());
  }
  if (!good) wrong(name_, key, "a text, or a list of " + std::to_string(count) + " texts", list);
  return result;
}

std::vector<std::vector<int64_t>> Config::integer_lists(const std::string& key, int64_t low, int64_t high) const {
  std::vector<std::vector<int64_t>> result;
  if (!has(key)) return result;
  const Json& lists = body_->json[key];
  if (!lists.is_array() || lists.size() > 64) wrong(name_, key, "a list of lists", lists);
  for (const Json& list : lists) {
    if (!list.is_array() || list.size() > 16) wrong(name_, key, "a list of lists", lists);
    result.emplace_back();
    for (const Json& value : list) result.back().push_back(as_integer(name_, key, value, low, high));
  }
  return result;
}

std::string Config::class_name(const std::string& key) const {
  if (!has(key)) return "";
  const Json& value = body_->json[key];
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array() || value.empty() || !value.back().is_string()) return "";
  return value.back().get<std::string>();
}

Config Config::child(const std::string& key) const {
  Config config;
  config.name_ = name_ + ": " + key;
  auto body = std::make_shared<Body>();
  body->json = has(key) ? body_->json[key] : Json::object();
  if (!body->json.is_object()) wrong(name_, key, "an object", body->json);
  config.body_ = body;
  return config;
}

std::vector<std::string> Config::keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : body_->json.items()) keys.push_back(key);
  return keys;
}

std::string Config::dump() const { return body_->json.dump(2, ' ', true, Json::error_handler_t::replace); }

}  // namespace kinora
