// What a setting's value may be, and which key was meant by one that is unknown.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "io/settings.h"

namespace kinora {
namespace {

using enum SettingType;

std::vector<std::string> split(std::string_view list, char by) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= list.size() && !list.empty();) {
    size_t end = std::min(list.find(by, at), list.size());
    parts.emplace_back(list.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// Insertions, deletions, replacements and swaps of neighbours between two words (the restricted Damerau-Levenshtein
// distance).
size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        d[i][j] = i + j;
        continue;
      }
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  }
  return d[a.size()][b.size()];
}

// "cuda:1" of the choice "cuda:N".
bool is_numbered(const std::string& choice, const std::string& given) {
  std::string_view digits = given;
  if (!digits.starts_with(choice.substr(0, choice.size() - 1))) return false;
  digits.remove_prefix(choice.size() - 1);
  return !digits.empty() && digits.size() <= 3 && digits.find_first_not_of("0123456789") == std::string_view::npos;
}

template <class T>
bool parse_number(std::string_view digits, T& value) {
  if (digits.starts_with('+')) digits.remove_prefix(1);
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return error == std::errc() && end == digits.data() + digits.size();
}

}  // namespace

std::string describe_setting(const SettingDef& def) {
  bool open = def.high == std::numeric_limits<int64_t>::max();
  std::string range = "from " + std::to_string(def.low) + " to " + (open ? "2^63 - 1" : std::to_string(def.high));
  switch (def.type) {
    case text: return "a text";
    case integer: return "a whole number " + range;
    case integers: return "whole numbers " + range + ", separated by commas";
    case real: return "a number " + range;
    case boolean: return "true or false";
    case choice: break;
  }
  std::vector<std::string> names = split(def.choices, '|');
  std::string list = names[0];
  for (size_t i = 1; i < names.size(); ++i) list += (i + 1 < names.size() ? ", " : " or ") + names[i];
  return list;
}

SettingValue parse_setting(const SettingDef& def, const std::string& given, bool plain, ErrorKind kind,
                           const std::string& where) {
  auto wrong = [&] {
    bool unclear = !plain && def.type != choice && def.type != integers;  // "30" in quotes
    fail(kind, where + " must be " + describe_setting(def) + ", not " + (unclear ? "the text " : "") + shown(given));
  };
  YamlType type = plain ? yaml_type(given) : YamlType::text;
  switch (def.type) {
    case text: return given;
    case choice: {
      for (const std::string& name : split(def.choices, '|')) {
        if (name.ends_with(":N") ? is_numbered(name, given) : given == name) return given;
      }
      wrong();
      break;
    }
    case integer: {
      int64_t value = 0;
      if (type != YamlType::integer || !parse_number(given, value) || value < def.low || value > def.high) wrong();
      return value;
    }
    case integers: {
      std::string list;
      for (std::string part : split(given, ',')) {
        while (part.starts_with(' ')) part.erase(0, 1);
        while (part.ends_with(' ')) part.pop_back();
        int64_t value = 0;
        if (yaml_type(part) != YamlType::integer || !parse_number(part, value) || value < def.low || value > def.high)
          wrong();
        list += (list.empty() ? "" : ",") + std::to_string(value);
      }
      if (list.empty()) wrong();
      return list;
    }
    case real: {
      double value = 0;
      bool good = (type == YamlType::integer || type == YamlType::real) && parse_number(given, value);
      if (!good || !std::isfinite(value) || value < static_cast<double>(def.low) ||
          value > static_cast<double>(def.high))
        wrong();
      return value;
    }
    case boolean:
      if (type != YamlType::boolean) wrong();
      return given[0] == 't' || given[0] == 'T';
  }
  fail(ErrorKind::internal, "setting " + std::string(def.key) + " has no type");
}

std::vector<int64_t> parse_integers(const std::string& text) {
  std::vector<int64_t> numbers;
  for (const std::string& part : split(text, ',')) {
    int64_t value = 0;
    check(parse_number(part, value), "parse_integers: the text was not checked");
    numbers.push_back(value);
  }
  return numbers;
}

std::string nearest_word(std::string_view word, std::span<const std::string> known) {
  constexpr size_t kLongest = 64;  // no key is longer
  if (word.size() > kLongest) return "";
  std::string best;
  size_t least = std::max<size_t>(word.size() / 3, 1) + 1;
  for (const std::string& candidate : known) {
    size_t far = distance(word, candidate);
    if (far < least) {
      least = far;
      best = candidate;
    }
  }
  return best;
}

// Looks at whole keys and sections, then at the last words of keys and at names of flags: people write `steps: 30` and
// `cfg_scale: 4`.
std::string nearest_setting(std::string_view key) {
  std::vector<std::string> keys, names, owners;
  for (const SettingDef& def : setting_table()) {
    if (key.find('.') == std::string_view::npos) keys.emplace_back(def.key.substr(0, def.key.find('.')));
    keys.emplace_back(def.key);
    names.emplace_back(def.key.substr(def.key.find('.') + 1));
    owners.emplace_back(def.key);
    for (std::string flag : split(def.flags, ',')) {
      if (!flag.starts_with("--")) continue;
      flag.erase(0, 2);
      std::replace(flag.begin(), flag.end(), '-', '_');
      names.push_back(flag);
      owners.emplace_back(def.key);
    }
  }
  std::string whole = nearest_word(key, keys);
  if (!whole.empty()) return whole;
  std::string word(key.substr(key.rfind('.') + 1));
  std::replace(word.begin(), word.end(), '-', '_');
  std::string name = nearest_word(word, names);
  auto at = std::find(names.begin(), names.end(), name);
  return at == names.end() ? "" : owners[static_cast<size_t>(at - names.begin())];
}

std::string unknown_setting(std::string_view key) {
  std::string near = nearest_setting(key);
  return "unknown key " + shown(key) +
         (near.empty() ? " (docs/configuration.md lists the keys)" : "; did you mean '" + near + "'?");
}

}  // namespace kinora
