// One configuration file, checked against the table of settings but not yet resolved.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "io/settings.h"

namespace kinora {

constexpr size_t kMostProblems = 50;

struct SettingEntry {
  std::string key, text;
  bool plain = true;   // not in quotes
  bool reset = false;  // null: back to the default
  YamlPlace place;     // of the value
};

struct SettingsFile {
  struct Base {
    std::string path;
    YamlPlace place;
  };
  std::vector<Base> bases;
  std::vector<SettingEntry> entries;
  std::map<std::string, std::vector<SettingEntry>> profiles;
};

// Throws Error(input), "NAME:LINE:COLUMN: what"; with `problems`, adds each message to it instead and reads on,
// up to kMostProblems of them.
SettingsFile read_settings_file(const YamlNode& root, const std::string& name,
                                std::vector<std::string>* problems = nullptr);

}  // namespace kinora
