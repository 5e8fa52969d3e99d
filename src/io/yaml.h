// YAML as far as configurations need it: a tree in which every node knows its place. Meant for files that strangers
// wrote.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kinora {

// Both from 1, columns in characters; 0 when unknown.
struct YamlPlace {
  int line = 0, column = 0;
};

struct YamlNode {
  enum class Kind { null, scalar, list, map };
  Kind kind = Kind::null;
  bool plain = true;  // a scalar without quotes, which may stand for a number
  std::string text;   // of a scalar
  YamlPlace place;
  std::string key;  // of a map's child
  YamlPlace key_place;
  std::vector<YamlNode> children;  // of a list or a map, in the order of the file
};

// The one document in `text`; an empty map when there is none. Throws Error(input), "NAME:LINE:COLUMN: what", on text
// that is no YAML or no map, and on what a configuration has no use for: tags, a key twice, keys that are no texts,
// tabs before the first word of a line, control characters, invalid UTF-8, a second document. Limits: 256 KiB, 32
// levels, 10000 nodes and 1 MiB of text after aliases are filled in, so that neither nesting nor aliases of aliases
// cost much.
YamlNode parse_yaml(std::string_view text, const std::string& name);

// parse_yaml of a regular file; throws Error(io) when it cannot be read. `name` is what messages call it.
YamlNode load_yaml(const std::string& path, const std::string& name);

// How YAML 1.2 reads a scalar that is not quoted.
enum class YamlType { null, boolean, integer, real, text };
YamlType yaml_type(std::string_view plain);

// Text for a message: in quotes, on one line, cut when long.
std::string shown(std::string_view text);

}  // namespace kinora
