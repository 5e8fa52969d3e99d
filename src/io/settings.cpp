// Reading configuration files and resolving them, layer over layer.
#include "io/settings.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "core/error.h"
#include "io/settings_file.h"

namespace kinora {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostFiles = 64, kLongestValue = size_t{64} << 10;

// A value that waits for its turn: what wins is expanded and parsed in the end.
struct Pending {
  SettingEntry entry;
  SettingSource source;

  std::string where() const {
    switch (source.kind) {
      case SettingSource::Kind::set: return "--set " + entry.key;
      case SettingSource::Kind::flag: return source.name;
      default:
        return source.name + ":" + std::to_string(source.place.line) + ":" + std::to_string(source.place.column) +
               ": " + entry.key;
    }
  }
  ErrorKind kind() const { return source.kind >= SettingSource::Kind::set ? ErrorKind::usage : ErrorKind::input; }
};

// Files and their bases, in the order in which they win.
class FileLayers {
 public:
  void load(const std::string& path) {
    std::error_code error;
    fs::path real = fs::canonical(path, error);
    if (error) fail(ErrorKind::io, "cannot open " + path + ": " + error.message());
    tree_ = real.parent_path();
    for (fs::path folder = tree_; folder.has_relative_path(); folder = folder.parent_path()) {
      if (folder.filename() != "configs") continue;
      tree_ = folder;
      break;
    }
    visit(path, real, "");
  }

  std::vector<Pending> plain;
  std::map<std::string, std::vector<Pending>> profiles;

 private:
  void visit(const std::string& name, const fs::path& real, const std::string& where) {
    if (++files_ > kMostFiles)
      fail(ErrorKind::input, where + "more than " + std::to_string(kMostFiles) + " files are based on one another");
    auto again = std::find(open_.begin(), open_.end(), real);
    if (again != open_.end()) {
      std::string circle;
      for (; again != open_.end(); ++again) circle += again->filename().string() + " -> ";
      fail(ErrorKind::input, where + "a file is its own base: " + circle + real.filename().string());
    }
    open_.push_back(real);
    SettingsFile file = read_settings_file(load_yaml(real.string(), name), name);
    for (const SettingsFile::Base& base : file.bases) {
      std::string at = name + ":" + std::to_string(base.place.line) + ":" + std::to_string(base.place.column) + ": ";
      visit((fs::path(name).parent_path() / base.path).lexically_normal().string(), find_base(real, base.path, at), at);
    }
    auto add = [&](std::vector<Pending>& to, const std::vector<SettingEntry>& entries, SettingSource source) {
      source.name = name;
      for (const SettingEntry& entry : entries) {
        source.place = entry.place;
        to.push_back({entry, source});
      }
    };
    add(plain, file.entries, {.kind = SettingSource::Kind::file});
    for (const auto& [profile, entries] : file.profiles)
      add(profiles[profile], entries, {.kind = SettingSource::Kind::profile, .profile = profile});
    open_.pop_back();
  }

  // A base lies in the tree of the file that the user named, whatever links say: a folder of configurations that came
  // from elsewhere reaches no file outside itself.
  fs::path find_base(const fs::path& from, const std::string& base, const std::string& where) const {
    if (fs::path(base).is_absolute())
      fail(ErrorKind::input,
           where + "the base " + shown(base) + " is an absolute path; bases are relative to their file");
    std::error_code error;
    fs::path real = fs::canonical(from.parent_path() / base, error);
    if (error) fail(ErrorKind::io, where + "cannot open the base " + shown(base) + ": " + error.message());
    if (std::mismatch(tree_.begin(), tree_.end(), real.begin(), real.end()).first != tree_.end()) {
      fail(ErrorKind::input, where + "the base " + shown(base) + " lies outside " + tree_.string() +
                                 "; name such a file with a --config of its own");
    }
    if (!fs::is_regular_file(real, error))
      fail(ErrorKind::io, where + "the base " + shown(base) + " is not a regular file");
    return real;
  }

  fs::path tree_;
  std::vector<fs::path> open_;
  size_t files_ = 0;
};

// Puts ${…} in place. Values refer to one another, so each is expanded when it is first asked for.
class Expander {
 public:
  explicit Expander(const std::map<std::string, Pending, std::less<>>& values) : values_(values) {}

  struct Expanded {
    std::string text;
    bool plain;
  };
  const Expanded& expand(const std::string& key) {
    auto known = done_.find(key);
    if (known != done_.end()) return known->second;
    const Pending& pending = values_.at(key);
    if (std::find(open_.begin(), open_.end(), key) != open_.end()) {
      std::string circle;
      for (const std::string& each : open_) circle += "${" + each + "} -> ";
      refuse(pending, "refers to itself: " + circle + "${" + key + "}");
    }
    open_.push_back(key);
    Expanded result = substitute(pending);
    open_.pop_back();
    return done_.emplace(key, std::move(result)).first->second;
  }

 private:
  [[noreturn]] void refuse(const Pending& pending, const std::string& what) const {
    fail(pending.kind(), pending.where() + " " + what);
  }

  Expanded substitute(const Pending& pending) {
    const std::string& text = pending.entry.text;
    Expanded result{"", pending.entry.plain};
    if (pending.source.kind == SettingSource::Kind::flag) return {text, true};  // the shell has had its turn
    for (size_t at = 0; at < text.size();) {
      if (text.compare(at, 3, "$${") == 0) {
        result.text += "${";
        at += 3;
      } else if (text.compare(at, 2, "${") == 0) {
        size_t end = text.find('}', at);
        if (end == std::string::npos) refuse(pending, "has a ${ without its } (write $${ for the characters ${)");
        result.text += variable(pending, text.substr(at + 2, end - at - 2));
        result.plain = true;  // "${env:STEPS}" is a number if the variable is one
        at = end + 1;
      } else {
        result.text += text[at++];
      }
      if (result.text.size() > kLongestValue) refuse(pending, "is longer than 64 KiB with its variables filled in");
    }
    return result;
  }

  std::string variable(const Pending& pending, const std::string& name) {
    if (name.find("${") != std::string::npos) refuse(pending, "has a ${ inside another; variables do not nest");
    if (name.starts_with("env:")) return environment(pending, name.substr(4));
    if (values_.count(name)) return expand(name).text;
    const SettingDef* def = find_setting(name);
    if (!def) {
      std::string near = nearest_setting(name);
      refuse(pending, "refers to " + shown("${" + name + "}") + ", which is no key" +
                          (near.empty() ? "; the environment is ${env:NAME}" : "; did you mean ${" + near + "}?"));
    }
    if (!def->fallback) refuse(pending, "refers to ${" + name + "}, which has no value here");
    return def->fallback;
  }

  std::string environment(const Pending& pending, const std::string& text) {
    size_t minus = text.find(":-");
    std::string name = text.substr(0, minus);
    bool good = !name.empty() && !(name[0] >= '0' && name[0] <= '9');
    for (char c : name) good = good && (c == '_' || std::isalnum(static_cast<unsigned char>(c)));
    if (!good) refuse(pending, "refers to " + shown("${env:" + text + "}") + ", which is no name of a variable");
    const char* value = std::getenv(name.c_str());
    if (minus != std::string::npos) return value && *value ? value : text.substr(minus + 2);
    if (!value)
      refuse(pending,
             "needs the environment variable " + name + ", which is not set (${env:" + name + ":-...} has a default)");
    return value;
  }

  const std::map<std::string, Pending, std::less<>>& values_;
  std::map<std::string, Expanded> done_;
  std::vector<std::string> open_;
};

// What each layer says, the weakest first.
class Merge {
 public:
  void add(const Pending& pending) {
    if (pending.entry.reset) {
      values.erase(pending.entry.key);
      return;
    }
    const SettingDef* def = find_setting(pending.entry.key);
    check(def != nullptr, "a setting that is not in the table");
    if (!def->instead_of.empty()) values.erase(std::string(def->instead_of));
    values.insert_or_assign(pending.entry.key, pending);
  }

  std::map<std::string, Pending, std::less<>> values;
};

const SettingDef& known_setting(const std::string& key, const std::string& where) {
  if (const SettingDef* def = find_setting(key)) return *def;
  fail(ErrorKind::usage, where + ": " + unknown_setting(key));
}

Pending parse_set(const std::string& set) {
  size_t equals = set.find('=');
  if (equals == std::string::npos) fail(ErrorKind::usage, "--set takes KEY=VALUE, not " + shown(set));
  Pending p;
  p.entry.key = set.substr(0, equals);
  p.entry.text = set.substr(equals + 1);
  p.entry.reset = !p.entry.text.empty() && yaml_type(p.entry.text) == YamlType::null;
  p.source.kind = SettingSource::Kind::set;
  known_setting(p.entry.key, "--set");
  return p;
}

Pending parse_flag(const std::string& key, const std::string& text) {
  const SettingDef& def = known_setting(key, "flag");
  Pending p;
  p.entry.key = key;
  p.entry.text = text;
  p.source.kind = SettingSource::Kind::flag;
  p.source.name = def.flags.substr(def.flags.find("--") == std::string_view::npos ? 0 : def.flags.find("--"));
  p.source.name = p.source.name.substr(0, p.source.name.find(','));
  return p;
}

void add_profile(Merge& merge, const std::vector<FileLayers>& files, const SettingsRequest& request) {
  if (request.profile.empty()) return;
  if (files.empty())
    fail(ErrorKind::usage, "--profile " + request.profile + " needs a --config that has such a profile");
  std::vector<std::string> names;
  bool found = false;
  for (const FileLayers& file : files) {
    for (const auto& [name, values] : file.profiles) {
      names.push_back(name);
      if (name != request.profile) continue;
      found = true;
      for (const Pending& pending : values) merge.add(pending);
    }
  }
  if (found) return;
  std::string near = nearest_word(request.profile, names), list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + shown(name);
  fail(ErrorKind::usage, "no profile " + shown(request.profile) + " in " + request.files.back() +
                             (!near.empty()  ? "; did you mean " + shown(near) + "?"
                              : list.empty() ? "; it has none"
                                             : " (it has " + list + ")"));
}

Settings resolve_layers(const std::vector<FileLayers>& files, const SettingsRequest& request) {
  Merge merge;
  for (const FileLayers& file : files) {
    for (const Pending& pending : file.plain) merge.add(pending);
  }
  add_profile(merge, files, request);
  for (const std::string& set : request.sets) merge.add(parse_set(set));
  for (const auto& [key, text] : request.flags) {
    Pending flag = parse_flag(key, text);
    std::string rival(find_setting(key)->instead_of);
    for (const auto& other : request.flags) {
      if (other.first == rival)
        fail(ErrorKind::usage,
             flag.source.name + " and " + parse_flag(rival, "").source.name + " exclude one another; give one");
    }
    merge.add(flag);
  }

  Settings settings;
  Expander expander(merge.values);
  for (const SettingDef& def : setting_table()) {
    auto given = merge.values.find(def.key);
    if (given != merge.values.end()) {
      const Pending& pending = given->second;
      const Expander::Expanded& value = expander.expand(pending.entry.key);
      settings.put(def.key,
                   {parse_setting(def, value.text, value.plain, pending.kind(), pending.where()), pending.source});
    } else if (def.fallback) {
      settings.put(def.key, {parse_setting(def, def.fallback, true, ErrorKind::internal, std::string(def.key)), {}});
    }
  }
  return settings;
}

}  // namespace

std::string SettingSource::str() const {
  switch (kind) {
    case Kind::fallback: return "default";
    case Kind::set: return "--set";
    case Kind::flag: return name;
    default: break;
  }
  std::string at = name + ":" + std::to_string(place.line) + ":" + std::to_string(place.column);
  return kind == Kind::profile ? at + " (profile " + profile + ")" : at;
}

const Settings::Item* Settings::find(std::string_view key) const {
  check(find_setting(key) != nullptr, "a setting that is not in the table");
  auto found = items_.find(key);
  return found == items_.end() ? nullptr : &found->second;
}

Settings resolve_settings(const SettingsRequest& request) {
  std::vector<FileLayers> files;
  for (const std::string& path : request.files) files.emplace_back().load(path);
  return resolve_layers(files, request);
}

std::vector<std::string> check_settings(const std::string& file) {
  std::vector<std::string> problems;
  auto attempt = [&](const std::function<void()>& body) {
    if (problems.size() >= kMostProblems) return;
    try {
      body();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::internal) throw;
      if (std::find(problems.begin(), problems.end(), error.what()) == problems.end())
        problems.emplace_back(error.what());
    }
  };
  attempt([&] { read_settings_file(load_yaml(file, file), file, &problems); });
  if (!problems.empty()) return problems;
  std::vector<FileLayers> layers(1);
  attempt([&] { layers[0].load(file); });
  if (!problems.empty()) return problems;
  SettingsRequest request{.files = {file}};
  attempt([&] { resolve_layers(layers, request); });
  for (const auto& profile : layers[0].profiles) {
    request.profile = profile.first;
    attempt([&] { resolve_layers(layers, request); });
  }
  return problems;
}

}  // namespace kinora
