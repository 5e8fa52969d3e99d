#include "prompt_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "text/unicode.h"

namespace kinora::cli {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostPrompts = 100000, kLargestFile = size_t{16} << 20;

// Settings that can differ from prompt to prompt.
bool is_per_prompt(const SettingDef& def) {
  constexpr std::string_view kWholeRun[] = {"prompt.file", "film.make", "output.preview"};
  constexpr std::string_view kSections[] = {"prompt.", "sampling.", "size.", "memory.tile",
                                            "noise.",  "output.",   "film."};
  auto begins = [&](std::string_view section) { return def.key.starts_with(section); };
  return std::none_of(std::begin(kWholeRun), std::end(kWholeRun), begins) &&
         std::any_of(std::begin(kSections), std::end(kSections), begins);
}

// What a line may call a setting: its key, the key's last word where that is clear, its flags ("cfg_scale").
std::vector<std::string> names_of(const SettingDef& def) {
  std::vector<std::string> names{std::string(def.key)};
  std::string word(def.key.substr(def.key.find('.') + 1));
  if (word != "file" && word != "name") names.push_back(word);
  std::string flag;
  for (char c : std::string(def.flags) + ",") {
    if (c != ',') {
      flag += c == '-' ? '_' : c;
      continue;
    }
    if (flag.starts_with("__")) names.push_back(flag.substr(2));
    if (!flag.starts_with('_')) names.push_back(flag);
    flag.clear();
  }
  return names;
}

const SettingDef& find_option(const std::string& name, const std::string& where) {
  std::vector<std::string> known;
  for (bool per_prompt : {true, false}) {
    for (const SettingDef& def : setting_table()) {
      if (is_per_prompt(def) != per_prompt || def.commands.find("generate") == std::string_view::npos) continue;
      std::vector<std::string> names = names_of(def);
      bool found = std::find(names.begin(), names.end(), name) != names.end();
      if (found && per_prompt) return def;
      if (found)
        fail(ErrorKind::input,
             where + ": '" + name + "' holds for all prompts; give it as a flag or in a configuration");
      if (per_prompt) known.insert(known.end(), names.begin(), names.end());
    }
  }
  std::string near = nearest_word(name, known);
  fail(ErrorKind::input,
       where + ": unknown key " + shown(name) +
           (near.empty() ? " (docs/configuration.md lists the keys)" : "; did you mean '" + near + "'?"));
}

SettingValue parse_option(const SettingDef& def, const Json& value, const std::string& where) {
  if (value.is_string()) {
    bool plain = def.type == SettingType::choice || def.type == SettingType::integers;
    return parse_setting(def, value.get<std::string>(), plain, ErrorKind::input, where);
  }
  bool scalar = value.is_number() || value.is_boolean();
  if (scalar && def.type != SettingType::text) return parse_setting(def, value.dump(), true, ErrorKind::input, where);
  std::string list;  // [1, 2, 5] as 1,2,5
  bool numbers = value.is_array() && !value.empty();
  for (size_t i = 0; numbers && i < value.size(); ++i) {
    numbers = value[i].is_number();
    list += (i ? "," : "") + value[i].dump();
  }
  if (numbers && (def.type == SettingType::integers || def.key == "film.key_frames"))
    return parse_setting(def, list, true, ErrorKind::input, where);
  fail(ErrorKind::input, where + " must be " + describe_setting(def) + ", not " +
                             value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 60));
}

Json parse_line(const std::string& line, const std::string& where) {
  try {
    return Json::parse(Config::parse(line, where).dump());  // refuses what is nested too deeply or names a key twice
  } catch (const Error& error) {
    fail(ErrorKind::input, error.what());
  }
}

// `options` become those of the line.
void apply_line(GenerateOptions& options, const SettingFlags& flags, const std::string& line,
                const std::string& where) {
  Json json = parse_line(line, where);
  bool named = false, sized = false, prompted = false;
  options.prompt.clear();
  for (const auto& [name, value] : json.items()) {
    const SettingDef& def = find_option(name, where);
    if (value.is_null()) continue;
    if (std::string why = why_useless(def, options.film.make); !why.empty()) fail(ErrorKind::input, where + ": " + why);
    flags.put(std::string(def.key), parse_option(def, value, where + ": '" + name + "'"));
    prompted = prompted || def.key == "prompt.text";
    named = named || def.key == "film.resolution" || def.key == "film.aspect_ratio";
    sized = sized || def.key.starts_with("size.");
  }
  if (!prompted) fail(ErrorKind::input, where + ": 'prompt' is missing");
  if (named && !sized) options.width = options.height = 0;
  if (sized && !named) options.film.resolution = options.film.aspect = "";
}

}  // namespace

std::vector<Job> read_jobs(GenerateOptions& options, const SettingFlags& flags) {
  if (options.prompt_file.empty()) return {{options, ""}};
  const GenerateOptions base = options;
  std::vector<Job> jobs;
  std::string text = read_file(base.prompt_file, kLargestFile);
  bool json = strip(text).starts_with('{');
  size_t number = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.find('\n', at), text.size());
    std::string line = strip(text.substr(at, end - at)), where = base.prompt_file + ":" + std::to_string(++number);
    at = end + 1;
    if (line.empty()) continue;
    if (jobs.size() == kMostPrompts)
      fail(ErrorKind::input, base.prompt_file + " holds more than " + std::to_string(kMostPrompts) + " prompts");
    options = base;
    if (json) {
      apply_line(options, flags, line, where);
    } else {
      options.prompt = line;
    }
    jobs.push_back({options, where});
  }
  options = base;
  if (jobs.empty()) fail(ErrorKind::input, base.prompt_file + " holds no prompt");
  return jobs;
}

}  // namespace kinora::cli
