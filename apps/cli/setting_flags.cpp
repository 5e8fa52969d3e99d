#include "setting_flags.h"

#include <algorithm>

#include "cli.h"

namespace kinora::cli {

SettingFlags::SettingFlags(CLI::App& command, const std::string& positional) : command_(command) {
  if (!positional.empty()) command.add_option(positional, files_, "Configuration files")->type_name("FILE");
  command.add_option("--config", request_.files, "YAML file with settings; of several, later ones win")
      ->type_name("FILE")
      ->allow_extra_args(false);
  command.add_option("--profile", request_.profile, "The part of the configuration with this name")->type_name("NAME");
  command.add_option("--set", request_.sets, "A setting by its key, as sampling.steps=30")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

// "Denoising steps, 1 to 1000 (default: the model's)"
static std::string help_of(const SettingDef& def) {
  std::string help(def.doc);
  bool number = def.type == SettingType::integer || def.type == SettingType::real;
  if (number && def.high != INT64_MAX) help += ", " + std::to_string(def.low) + " to " + std::to_string(def.high);
  std::string otherwise = def.fallback ? std::string(def.fallback) : std::string(def.otherwise);
  return otherwise == "none" || def.type == SettingType::boolean ? help : help + " (default: " + otherwise + ")";
}

CLI::Option* SettingFlags::add(const std::string& key, const std::string& names) {
  const SettingDef* def = find_setting(key);
  check(def != nullptr, "a flag without a row in the table of settings");
  const std::string flags = names.empty() ? std::string(def->flags) : names, help = help_of(*def);
  switch (def->type) {
    case SettingType::boolean: return command_.add_flag(flags, help);
    case SettingType::text: return command_.add_option(flags, help)->expected(1)->type_name("TEXT");
    default: break;
  }
  const char* type = def->type == SettingType::integer    ? "INT"
                     : def->type == SettingType::integers ? "INT,..."
                     : def->type == SettingType::real     ? "NUMBER"
                                                          : nullptr;
  CLI::Option* option = command_.add_option(flags, help)->expected(1);
  option->type_name(type ? type : std::string(def->choices));
  return option->check([def](const std::string& text) -> std::string {
    try {
      parse_setting(*def, text, true, ErrorKind::usage, "it");
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  });
}

// In a file, a key for another command does no harm; on the command line it is a mistake.
void SettingFlags::refuse_useless_sets() const {
  for (const std::string& set : request_.sets) {
    std::string key = set.substr(0, set.find('='));
    const SettingDef* def = find_setting(key);
    bool used = std::any_of(bound_.begin(), bound_.end(), [&](const Bound& b) { return b.key == key; });
    if (def && !used && !bound_.empty())
      fail(ErrorKind::usage, "--set " + key + ": kinora " + command_.get_name() +
                                 " does not use it (used by: " + std::string(def->commands) + ")");
  }
}

Settings SettingFlags::resolve() const {
  refuse_useless_sets();
  SettingsRequest request = request_;
  request.files.insert(request.files.begin(), files_.begin(), files_.end());
  for (const Bound& bound : bound_) {
    if (bound.option->count() > 0) request.flags.emplace_back(bound.key, bound.option->results().back());
  }
  Settings settings = resolve_settings(request);
  for (const Bound& bound : bound_) bound.assign(settings);
  return settings;
}

void SettingFlags::put(const std::string& key, SettingValue value) const {
  Settings settings;
  settings.put(key, {std::move(value), {}});
  for (const Bound& bound : bound_) {
    if (bound.key == key) bound.assign(settings);
  }
}

void bind_load_options(SettingFlags& flags, LoadOptions& options) {
  flags.bind("model.variant", options.variant);
  flags.bind("compute.device", options.device);
  flags.bind("compute.dtype", options.dtype);
  flags.bind("compute.attention", options.attention);
  flags.bind("compute.threads", options.threads);
  flags.bind("compute.quantize", options.quantize);
  flags.bind("compute.quantize_layers", options.quantize_layers);
  options.stop = &stop_requested;
}

}  // namespace kinora::cli
