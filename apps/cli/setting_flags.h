// Flags that are also keys of a configuration (io/settings.h): names, help, limits and defaults come from the table.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "diffusion/pipeline.h"
#include "io/settings.h"

namespace kinora::cli {

class SettingFlags {
 public:
  // Gives the command --config, --profile and --set; `positional`, if any, takes files like --config.
  explicit SettingFlags(CLI::App& command, const std::string& positional = "");
  SettingFlags(const SettingFlags&) = delete;
  SettingFlags& operator=(const SettingFlags&) = delete;

  // A flag for `key`, by the names in the table or by `names`; resolve() puts the value into `variable`, which keeps
  // what it holds when nobody gave one. `variable` must outlive the last call of resolve().
  template <class T>
  CLI::Option* bind(const std::string& key, T& variable, const std::string& names = "") {
    Bound bound{
        key, add(key, names), [key, &variable](const Settings& settings) {
          if (!settings.has(key)) return;
          if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, bool> || std::is_same_v<T, double>) {
            variable = settings.get<T>(key);
          } else if constexpr (std::is_same_v<T, std::vector<uint64_t>>) {
            variable.clear();
            for (int64_t number : parse_integers(settings.get<std::string>(key)))
              variable.push_back(static_cast<uint64_t>(number));
          } else {
            variable = static_cast<T>(settings.get<int64_t>(key));
          }
        }};
    return bound_.emplace_back(std::move(bound)).option;
  }

  // Reads the files, after the command line has been parsed. Throws as resolve_settings does.
  Settings resolve() const;
  // Puts one value into the variable bound to its key.
  void put(const std::string& key, SettingValue value) const;

 private:
  struct Bound {
    std::string key;
    CLI::Option* option;
    std::function<void(const Settings&)> assign;
  };
  CLI::Option* add(const std::string& key, const std::string& names);
  void refuse_useless_sets() const;

  CLI::App& command_;
  SettingsRequest request_;
  std::vector<std::string> files_;
  std::vector<Bound> bound_;
};

// The flags of LoadOptions; Ctrl-C stops the work.
void bind_load_options(SettingFlags& flags, LoadOptions& options);

}  // namespace kinora::cli
