// Settings and their table as texts: YAML, JSON Schema, the reference page.
#include <cctype>
#include <nlohmann/json.hpp>

#include "io/settings.h"

namespace kinora {
namespace {

using Json = nlohmann::ordered_json;

std::string section_of(const SettingDef& def) { return std::string(def.key.substr(0, def.key.find('.'))); }
std::string name_of(const SettingDef& def) { return std::string(def.key.substr(def.key.find('.') + 1)); }

// A text that YAML reads as itself and in which nothing is a variable.
std::string yaml_text(const std::string& text) {
  bool simple = !text.empty() && yaml_type(text) == YamlType::text;
  for (size_t i = 0; i < text.size() && simple; ++i) {
    char c = text[i];
    simple = std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '/' || c == '.' ||
             (i > 0 && (c == '-' || c == '+' || c == '{' || c == '}'));
  }
  if (simple) return text;
  std::string escaped;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.compare(i, 2, "${") == 0) escaped += '$';
    escaped += text[i];
  }
  // JSON's escapes are YAML's too, except for pairs of surrogates, which this does not write.
  std::string json = Json(escaped).dump(-1, ' ', false, Json::error_handler_t::replace);
  for (size_t at = 0; (at = json.find('\x7f', at)) != std::string::npos;) json.replace(at, 1, "\\u007f");
  return json;
}

std::string yaml_value(const SettingValue& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return yaml_text(*text);
  if (const auto* integer = std::get_if<int64_t>(&value)) return std::to_string(*integer);
  if (const auto* boolean = std::get_if<bool>(&value)) return *boolean ? "true" : "false";
  return Json(std::get<double>(value)).dump();
}

std::vector<std::string> choices_of(const SettingDef& def) {
  std::vector<std::string> names{""};
  for (char c : def.choices) {
    if (c == '|') {
      names.emplace_back();
    } else {
      names.back() += c;
    }
  }
  return names;
}

Json value_schema(const SettingDef& def) {
  Json schema;
  switch (def.type) {
    case SettingType::text: schema = {{"type", Json::array({"string", "number", "boolean"})}}; break;
    case SettingType::choice: schema = {{"enum", Json::array()}}; break;
    case SettingType::integer: schema = {{"type", "integer"}, {"minimum", def.low}, {"maximum", def.high}}; break;
    case SettingType::integers:
      schema = {{"type", Json::array({"integer", "array"})},
                {"minimum", def.low},
                {"items", {{"type", "integer"}, {"minimum", def.low}}}};
      break;
    case SettingType::real: schema = {{"type", "number"}, {"minimum", def.low}, {"maximum", def.high}}; break;
    case SettingType::boolean: schema = {{"type", "boolean"}}; break;
  }
  Json any = Json::array({schema});
  for (const std::string& choice : choices_of(def)) {
    if (choice.ends_with(":N")) {
      any.push_back({{"type", "string"}, {"pattern", "^" + choice.substr(0, choice.size() - 1) + "[0-9]{1,3}$"}});
    } else if (def.type == SettingType::choice) {
      any[0]["enum"].push_back(choice);
    }
  }
  if (def.type == SettingType::integers) {
    any.push_back({{"type", "string"}});
  } else if (def.type != SettingType::text) {
    any.push_back({{"type", "string"}, {"pattern", R"(\$\{.*\})"}});
  }
  any.push_back({{"type", "null"}});
  Json result{{"description", std::string(def.doc)}, {"anyOf", any}};
  if (def.fallback) {
    SettingValue value = parse_setting(def, def.fallback, true, ErrorKind::internal, std::string(def.key));
    std::visit([&](const auto& v) { result["default"] = v; }, value);
  } else {
    result["description"] = std::string(def.doc) + " (default: " + std::string(def.otherwise) + ")";
  }
  return result;
}

std::string cell(std::string text) {  // of a Markdown table
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) text.insert(at, "\\");
  return text;
}

// Flags as a reader types them: "`-s`, `--seed`".
std::string flags_cell(const SettingDef& def) {
  if (!def.flags.starts_with('-')) return "the argument `" + std::string(def.flags) + "`";
  std::string out = "`";
  for (char c : def.flags) out += c == ',' ? "`, `" : std::string(1, c);
  return out + "`";
}

const char kIntroduction[] = R"(# Configuration

<!-- Written by `kinora config schema --markdown`; change src/io/settings_table.cpp or settings_text.cpp instead. -->

What flags say can stand in YAML files. `--config FILE` works with every command that draws, measures or looks at a
model:

    kinora generate "a lighthouse at dusk" --config configs/models/sana-sprint-0.6b.yaml --set sampling.steps=4

```yaml
# my.yaml
base: configs/models/sana-1.6b-1024px.yaml      # what is not said here is taken from there
sampling:
  steps: 30
output:
  file: ${env:HOME:-/tmp}/pictures/{seed}.png
profiles:
  laptop:                                       # with --profile laptop
    compute: {dtype: bfloat16, threads: 4}
    memory: {tile: 512}
```

    kinora config check my.yaml                     all that is wrong with it, by line and column
    kinora config show my.yaml --profile laptop     what it comes to, and where each value is from
    kinora config schema                            a JSON Schema, for editors that know YAML

## What wins

From the strongest: a flag, `--set KEY=VALUE`, the profile, the file, its bases, the defaults. Of several `--config`, of
several bases and of several `--set` the later wins. A profile may be spread over a file and its bases; all of it is
stronger than what stands outside profiles. `null` (or nothing after the colon) takes a value back: the default holds
again. `prompt.text` and `prompt.file` replace one another. `generate --from PICTURE` takes from the picture whatever
it records, except the model, the device and the type of activations when they are named.

A key that a command has no use for is passed over when it stands in a file, so that one file serves all commands, and
refused after `--set`. A key that no command knows is refused anywhere.

## Bases

`base` is a path or a list of paths, relative to the file that names them. A base lies in the folder of the file given to
`--config` or below it; when that file is in a folder named `configs`, however deep, in that folder or below. Absolute
paths, and `..` or links that lead out of there, are refused: a folder of configurations from elsewhere reads nothing but
itself. To build on a file that lies elsewhere, give both: `--config theirs.yaml --config my.yaml`. A file cannot be its
own base, and at most 64 files are read.

## Variables

`${sampling.steps}` is the value of another key, after everything has been resolved; `${env:NAME}` is a variable of the
environment, which must be set; `${env:NAME:-text}` is `text` when it is unset or empty. `$${` stands for the characters
`${`. Variables work in values of files and of `--set`, not in keys, bases or flags, and do not nest. Inside `{…}` and
`[…]` YAML wants quotes around them; a number from a variable is a number even so. Apart from bases, paths are relative
to the folder that the program runs in, as on the command line.

## What is YAML here

YAML 1.2 as far as it is plain: text needs no quotes, but numbers in quotes are text, and `true` and `false` are the only
truth values. Anchors and aliases work. Refused, with line and column: a key twice, keys that are no text, tags, a second
document, tabs as indentation, control characters, anything but UTF-8, numbers that are not finite. A file holds at most
256 KiB, 32 levels, and 10000 values or 1 MiB after aliases are filled in.

A configuration names files to read and to write, as the command line does. Look at one from a stranger before you use
it; `kinora config show` prints it without doing anything.

## Keys
)";

}  // namespace

std::string settings_yaml(const Settings& settings) {
  std::string out, section;
  for (const SettingDef& def : setting_table()) {
    if (section_of(def) != section) out += (section = section_of(def)) + ":\n";
    const Settings::Item* item = settings.find(def.key);
    std::string line = item ? "  " + name_of(def) + ": " + yaml_value(item->value)
                            : "  # " + name_of(def) + ": " + std::string(def.otherwise);
    if (item) {
      if (line.size() < 40) line.resize(40, ' ');
      line += "  # ";
      for (unsigned char c : item->source.str()) line += c < ' ' ? ' ' : static_cast<char>(c);  // names hold anything
    }
    out += line + "\n";
  }
  return out;
}

std::string settings_schema() {
  Json sections = Json::object(), refs = Json::object();
  for (const SettingDef& def : setting_table()) {
    std::string section = section_of(def);
    if (!sections.contains(section)) {
      sections[section] = {{"type", Json::array({"object", "null"})}, {"additionalProperties", false}};
      refs[section] = {{"$ref", "#/$defs/" + section}};
    }
    sections[section]["properties"][name_of(def)] = value_schema(def);
  }
  Json base{{"type", "string"}, {"minLength", 1}};
  Json properties{
      {"base",
       {{"description", "Files whose values hold where this one says nothing"},
        {"anyOf", Json::array({base, {{"type", "array"}, {"items", base}}})}}},
      {"profiles",
       {{"description", "Values for --profile NAME"},
        {"type", Json::array({"object", "null"})},
        {"additionalProperties",
         {{"type", Json::array({"object", "null"})}, {"additionalProperties", false}, {"properties", refs}}}}}};
  properties.update(refs);
  Json schema{{"$schema", "https://json-schema.org/draft/2020-12/schema"},
              {"title", "Kinora configuration"},
              {"type", "object"},
              {"additionalProperties", false},
              {"properties", properties},
              {"$defs", sections}};
  return schema.dump(2) + "\n";
}

std::string settings_reference() {
  std::string out = kIntroduction, section;
  for (const SettingDef& def : setting_table()) {
    if (section_of(def) != section) {
      section = section_of(def);
      out += "\n### " + section + "\n\n| key | value | default | flag | commands | |\n|---|---|---|---|---|---|\n";
    }
    std::string fallback = def.fallback ? "`" + std::string(def.fallback) + "`" : std::string(def.otherwise);
    out += "| `" + name_of(def) + "` | " + describe_setting(def) + " | " + cell(fallback) + " | " + flags_cell(def) +
           " | " + std::string(def.commands) + " | " + std::string(def.doc) + " |\n";
  }
  return out;
}

}  // namespace kinora
