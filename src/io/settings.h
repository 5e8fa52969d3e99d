// Settings: what flags and configuration files say about a run, each under a dotted key such as "sampling.steps".
// docs/configuration.md, which settings_reference() writes, gives the rules of the files.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/error.h"
#include "io/yaml.h"

namespace kinora {

// `integers`: one whole number or several, separated by commas; a file may also write a list.
enum class SettingType { text, choice, integer, integers, real, boolean };

// One key. The table of these is what flags, checks, `kinora config`, the JSON Schema and the reference page come from.
struct SettingDef {
  std::string_view key;
  SettingType type;
  std::string_view flags;     // of the program, as CLI11 takes them; a name without dashes is a positional argument
  std::string_view commands;  // those that use it, separated by spaces
  std::string_view doc;       // one line, without a full stop
  const char* fallback = nullptr;  // the default as a configuration writes it, or
  std::string_view otherwise;      // what happens without one: "the model's"
  int64_t low = 0, high = 0;       // of numbers, both included
  std::string_view choices;        // of a choice, separated by '|'; one that ends in :N stands for any number
  std::string_view instead_of;     // the key that this one makes meaningless, and which makes this one meaningless
};
std::span<const SettingDef> setting_table();
const SettingDef* find_setting(std::string_view key);  // null when there is none

// Types and limits in words: "a whole number from 1 to 1000".
std::string describe_setting(const SettingDef& def);

using SettingValue = std::variant<std::string, int64_t, double, bool>;  // text, choice and integers: std::string

// A value as a file, a flag or --set wrote it -> the value; throws Error(kind), "WHERE must be …, not …".
// `plain`: not in quotes, so it may be a number.
SettingValue parse_setting(const SettingDef& def, const std::string& text, bool plain, ErrorKind kind,
                           const std::string& where);

// The numbers of a value of type `integers`: "1,2,5" -> 1, 2, 5.
std::vector<int64_t> parse_integers(const std::string& text);

// The key to suggest for an unknown one, "" when none is near.
std::string nearest_setting(std::string_view key);
std::string unknown_setting(std::string_view key);  // the message, with that suggestion
std::string nearest_word(std::string_view word, std::span<const std::string> known);

// Where a value came from.
struct SettingSource {
  enum class Kind { fallback, file, profile, set, flag };
  Kind kind = Kind::fallback;
  std::string name;  // the file; the flag
  YamlPlace place;
  std::string profile;
  std::string str() const;  // "my.yaml:3:7 (profile laptop)"
};

// Every setting of a run, resolved. Getters throw Error(internal) for a key that is not in the table or another type.
class Settings {
 public:
  struct Item {
    SettingValue value;
    SettingSource source;
  };
  bool has(std::string_view key) const { return find(key) != nullptr; }  // given, or with a default in the table
  const Item* find(std::string_view key) const;
  template <class T>
  const T& get(std::string_view key) const {
    const Item* item = find(key);
    const T* value = item ? std::get_if<T>(&item->value) : nullptr;
    if (!value) fail(ErrorKind::internal, "setting " + std::string(key) + " has no value of this type");
    return *value;
  }
  void put(std::string_view key, Item item) { items_.insert_or_assign(std::string(key), std::move(item)); }

 private:
  std::map<std::string, Item, std::less<>> items_;
};

struct SettingsRequest {
  std::vector<std::string> files;                          // later ones win over earlier ones
  std::string profile;                                     // "" for none
  std::vector<std::string> sets;                           // "key=value"
  std::vector<std::pair<std::string, std::string>> flags;  // key and text, from the command line
};

// Reads the files and what they are based on, and lets flags win over sets, sets over the profile, the profile over the
// files, a file over its bases, and everything over the defaults; then fills in variables and checks every value.
// Throws Error(input) or Error(io) on a file, Error(usage) on a flag, a set or a profile that is unknown.
Settings resolve_settings(const SettingsRequest& request);

// Everything wrong with a file, its bases and each of its profiles; empty when nothing is.
std::vector<std::string> check_settings(const std::string& file);

std::string settings_yaml(const Settings& settings);  // as a configuration, each line with where it came from
std::string settings_schema();                        // JSON Schema 2020-12 of a configuration file
std::string settings_reference();                     // docs/configuration.md

}  // namespace kinora
