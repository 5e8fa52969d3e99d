#include "io/settings_file.h"

#include <algorithm>

#include "core/error.h"

namespace kinora {
namespace {

using Kind = YamlNode::Kind;

class Reader {
 public:
  Reader(const std::string& name, std::vector<std::string>* problems) : name_(name), problems_(problems) {}

  SettingsFile read(const YamlNode& root) {
    SettingsFile file;
    for (const YamlNode& node : root.children) {
      if (node.key == "base") {
        read_bases(node, file);
      } else if (node.key == "profiles") {
        read_profiles(node, file);
      } else {
        read_key(node, "", file.entries);
      }
    }
    check_rivals(file.entries);
    return file;
  }

 private:
  void report(YamlPlace at, const std::string& what) const {
    std::string message = name_ + ":" + std::to_string(at.line) + ":" + std::to_string(at.column) + ": " + what;
    if (!problems_) fail(ErrorKind::input, message);
    problems_->push_back(message);
    if (problems_->size() == kMostProblems)
      fail(ErrorKind::input, name_ + " has " + std::to_string(kMostProblems) + " problems or more; these come first");
  }

  static const char* describe(const YamlNode& node) {
    switch (node.kind) {
      case Kind::null: return "nothing";
      case Kind::scalar: return "a value";
      case Kind::list: return "a list";
      case Kind::map: return "a map";
    }
    return "";
  }

  static bool is_section(const std::string& key) {
    auto table = setting_table();
    return std::any_of(table.begin(), table.end(), [&](const SettingDef& d) { return d.key.starts_with(key + "."); });
  }

  void read_key(const YamlNode& node, const std::string& prefix, std::vector<SettingEntry>& entries) const {
    std::string key = prefix + node.key;
    if (is_section(key) && node.key.find('.') == std::string::npos) {
      if (node.kind == Kind::null) return;
      if (node.kind != Kind::map)
        return report(node.place, "'" + key + "' is a section, a map of keys, not " + describe(node));
      for (const YamlNode& child : node.children) read_key(child, key + ".", entries);
      return;
    }
    const SettingDef* def = find_setting(key);
    if (!def) return report(node.key_place, unknown_setting(key));
    if (node.key.find('.') != std::string::npos) {
      return report(node.key_place, "'" + key + "' in one word is for --set; in a file, write " +
                                        key.substr(key.rfind('.') + 1) + " under " + key.substr(0, key.rfind('.')));
    }
    if (node.kind == Kind::list && def->type == SettingType::integers) return read_list(*def, node, entries);
    if (node.kind == Kind::list || node.kind == Kind::map)
      return report(node.place, key + " must be " + describe_setting(*def) + ", not " + describe(node));
    SettingEntry entry{key, node.text, node.plain, node.kind == Kind::null, node.place};
    if (!entry.reset && entry.text.find("${") == std::string::npos) check_value(*def, entry);
    entries.push_back(std::move(entry));
  }

  // [1, 2, 5] as if it were written 1,2,5.
  void read_list(const SettingDef& def, const YamlNode& node, std::vector<SettingEntry>& entries) const {
    SettingEntry entry{std::string(def.key), "", true, false, node.place};
    for (const YamlNode& part : node.children) {
      if (part.kind != Kind::scalar)
        return report(part.place, entry.key + " must be " + describe_setting(def) + ", not " + describe(part));
      entry.text += (entry.text.empty() ? "" : ",") + part.text;
    }
    if (entry.text.find("${") == std::string::npos) check_value(def, entry);
    entries.push_back(std::move(entry));
  }

  void check_value(const SettingDef& def, const SettingEntry& entry) const {
    try {
      parse_setting(def, entry.text, entry.plain, ErrorKind::input, entry.key);
    } catch (const Error& error) {
      report(entry.place, error.what());
    }
  }

  // Two keys that exclude one another, in the same place: neither can win.
  void check_rivals(const std::vector<SettingEntry>& entries) const {
    for (auto later = entries.begin(); later != entries.end(); ++later) {
      std::string_view rival = find_setting(later->key)->instead_of;
      for (auto earlier = entries.begin(); earlier != later; ++earlier) {
        if (earlier->key == rival && !earlier->reset && !later->reset)
          report(later->place, later->key + " and " + earlier->key + " exclude one another; give one");
      }
    }
  }

  void read_bases(const YamlNode& node, SettingsFile& file) const {
    auto add = [&](const YamlNode& path) {
      if (path.kind != Kind::scalar || path.text.empty()) {
        const char* what = path.kind == Kind::scalar ? "an empty text" : describe(path);
        report(path.place, std::string("a base is the path of a file, not ") + what);
      } else if (std::any_of(path.text.begin(), path.text.end(), [](unsigned char c) { return c < ' '; })) {
        report(path.place, "a base with a control character in its name");
      } else if (path.text.find("${") != std::string::npos) {
        report(path.place, "a base cannot hold variables");
      } else {
        file.bases.push_back({path.text, path.place});
      }
    };
    if (node.kind != Kind::list) return add(node);
    for (const YamlNode& path : node.children) add(path);
  }

  void read_profiles(const YamlNode& node, SettingsFile& file) const {
    if (node.kind == Kind::null) return;
    if (node.kind != Kind::map)
      return report(node.place, std::string("'profiles' is a map of names, not ") + describe(node));
    for (const YamlNode& profile : node.children) {
      std::vector<SettingEntry>& entries = file.profiles[profile.key];
      if (profile.kind == Kind::null) continue;
      if (profile.kind != Kind::map) {
        report(profile.place, "the profile " + shown(profile.key) + " is a map of keys, not " + describe(profile));
        continue;
      }
      for (const YamlNode& child : profile.children) {
        if (child.key == "base" || child.key == "profiles") {
          report(child.key_place, "'" + child.key + "' stands at the top of a file, not in a profile");
        } else {
          read_key(child, "", entries);
        }
      }
      check_rivals(entries);
    }
  }

  const std::string& name_;
  std::vector<std::string>* problems_;
};

}  // namespace

SettingsFile read_settings_file(const YamlNode& root, const std::string& name, std::vector<std::string>* problems) {
  return Reader(name, problems).read(root);
}

}  // namespace kinora
