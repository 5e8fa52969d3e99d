#include "io/yaml.h"

#include <gtest/gtest.h>

#include <chrono>

#include "core/error.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

struct BadText {
  const char* why;
  std::string text, message;  // the message's start, after "c.yaml"
};

class BadYaml : public testing::TestWithParam<BadText> {};

TEST_P(BadYaml, IsRefused) {
  try {
    parse_yaml(GetParam().text, "c.yaml");
    FAIL() << "accepted: " << GetParam().why;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::input) << error.what();
    EXPECT_TRUE(std::string(error.what()).starts_with("c.yaml" + GetParam().message))
        << GetParam().why << ": " << error.what();
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
  }
}

// a: &a [x, x] ... each line ten times the one before.
std::string alias_bomb(int lines, const std::string& first) {
  std::string text = "a0: &a0 " + first + "\n";
  for (int i = 1; i < lines; ++i) {
    text += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [";
    for (int j = 0; j < 10; ++j) text += (j ? ", *a" : "*a") + std::to_string(i - 1);
    text += "]\n";
  }
  return text;
}

INSTANTIATE_TEST_SUITE_P(
    All, BadYaml,
    testing::Values(
        BadText{"a list", "- a\n- b\n", ":1:1: a configuration is a map"},
        BadText{"a text", "hello", ":1:1: a configuration is a map"},
        BadText{"a bracket that stays open", "a: [1, 2\nb: 3\n",
                ":2:2: not valid YAML: end of sequence flow not found (is a ] missing?)"},
        BadText{"a quote that stays open", "a: 1\nb: 'c\nd: 2\n",
                ":4:1: not valid YAML: illegal document indicator in scalar (a quote is not closed)"},
        BadText{"a double quote that stays open", "a: \"b",
                ":1:1: not valid YAML: illegal document indicator in scalar (a quote is not closed)"},
        BadText{"wrong indentation", "a: {b: 1}\n c: 2\n",
                ":2:2: not valid YAML: end of map not found (is the indentation right?)"},
        BadText{"a key twice", "a: 1\nb: 2\na: 3\n", ":3:1: the key 'a' again; it was given in line 1"},
        BadText{"a key twice, deeper", "a:\n  b: 2\n  \"b\": 3\n", ":3:3: the key 'b' again"},
        BadText{"a number as key", "a: 1\n7: 2\n", ":2:1: a key that is no text"},
        BadText{"a truth value as key", "true: 2\n", ":1:1: a key that is no text"},
        BadText{"null as key", "~: 2\n", ":1:1: a key that is no text"},
        BadText{"nothing as key", ": 2\n", ":1:1: a key that is no text"},
        BadText{"a list as key", "? [a, b]\n: 2\n", ":1:3: a key that is no text"},
        BadText{"a map as key", "{a: 1}: 2\n", ":1:1: a key that is no text"},
        BadText{"an alias to a list as key", "a: &x [1]\n*x : 2\n", ":2:1: a key that is no text"},
        BadText{"a tab as indentation", "a:\n\tb: 1\n", ":2:1: a tab"},
        BadText{"a tab after spaces", "a:\n  \tb: 1\n", ":2:3: a tab"},
        BadText{"a tag", "a: !!python/object:os.system x\n",
                ":1:4: the tag 'tag:yaml.org,2002:python/object:os.system'"},
        BadText{"a tag on a map", "a: !mine {b: 1}\n", ":1:4: the tag '!mine'"},
        BadText{"two documents", "a: 1\n---\nb: 2\n", ":2:1: a second document"},
        BadText{"a zero byte", std::string("a: b\0c\n", 7), ":1:5: a control character"},
        BadText{"the byte that ends yaml-cpp's input", "a: 1\nb: \x04\nc: !x 1\n", ":2:4: a control character"},
        BadText{"an escaped zero byte", "a: \"b\\0c\"\n", ":1:4: a text with a zero byte"},
        BadText{"a lone carriage return", "a: 1\rb: 2\n", ":1:5: a control character"},
        BadText{"invalid UTF-8", "a: 1\n\xc3\xa9: 1\nb: caf\xc3\n", ":3:7: not UTF-8"},
        BadText{"overlong UTF-8", "a: \xc0\xaf\n", ":1:4: not UTF-8"},
        BadText{"a surrogate", "a: \xed\xa0\x80\n", ":1:4: not UTF-8"},
        BadText{"UTF-16",
                std::string("\xff\xfe"
                            "a\0:\0 \0b\0",
                            10),
                ":1:1: not UTF-8"},
        BadText{"a column counted in characters", "é: {ü: 1, ü: 2}\n", ":1:11: the key 'ü' again"},
        BadText{"an unknown alias", "a: *b\n", ":1:4: not valid YAML"},
        BadText{"an alias inside its anchor", "a: &a [1, *a]\n", ":1:11: an alias inside its own anchor"},
        BadText{"an alias bomb", alias_bomb(12, "[x, x]"), ":5:"},
        BadText{"an alias bomb of text", alias_bomb(4, "'" + std::string(100000, 'x') + "'"), ":2:"},
        BadText{"lists in lists", "a: " + std::string(40, '[') + std::string(40, ']'), ":1:35: nested deeper than 32"},
        BadText{"a hundred thousand lists", "a: " + std::string(100000, '[') + std::string(100000, ']'), ":1:"},
        BadText{"a hundred thousand maps", "a: " + std::string(100000, '{') + std::string(100000, '}'), ":1:"},
        BadText{"too many values", "a: [" + std::string(20002, ',').replace(0, 1, "1") + "]\n", ":1:"},
        BadText{"too large", "a: '" + std::string(300000, 'x') + "'\n", " is larger than 256 KiB"}));

TEST(Yaml, KeepsValuesQuotesAndPlaces) {
  YamlNode root = parse_yaml(
      "\xef\xbb\xbf# a comment\r\na: 1\r\nf: &r {g: h}\nb:\n  c: 'two'\n  é: [x, ~, \"3\", *r]\ne: |\n  line\n  line\n",
      "c.yaml");
  using Kind = YamlNode::Kind;
  ASSERT_EQ(root.kind, Kind::map);
  ASSERT_EQ(root.children.size(), 4u);
  const YamlNode &a = root.children[0], &b = root.children[2], &e = root.children[3];
  EXPECT_EQ(a.key, "a");
  EXPECT_EQ(a.text, "1");
  EXPECT_TRUE(a.plain);
  EXPECT_EQ(a.place.line, 2);
  EXPECT_EQ(a.place.column, 4);
  EXPECT_EQ(b.children[0].text, "two");
  EXPECT_FALSE(b.children[0].plain);
  EXPECT_EQ(b.key_place.line, 4);
  const YamlNode& list = b.children[1];
  ASSERT_EQ(list.kind, Kind::list);
  ASSERT_EQ(list.children.size(), 4u);
  EXPECT_EQ(list.children[1].kind, Kind::null);
  EXPECT_FALSE(list.children[2].plain);
  EXPECT_EQ(list.children[2].place.column, 13);
  EXPECT_EQ(list.children[3].children[0].key, "g");
  EXPECT_EQ(list.children[3].place.line, 6);  // where the alias is, not its anchor
  EXPECT_EQ(e.text, "line\nline\n");
  EXPECT_FALSE(e.plain);
}

TEST(Yaml, EmptyFilesAreEmptyMaps) {
  for (std::string text : {"", "\n\n", "# nothing\n", "---\n", "--- {}\n...\n", "null\n"}) {
    YamlNode root = parse_yaml(text, "c.yaml");
    EXPECT_EQ(root.kind, YamlNode::Kind::map) << text;
    EXPECT_TRUE(root.children.empty()) << text;
  }
}

TEST(Yaml, TypesOfPlainScalars) {
  using enum YamlType;
  for (auto [text, type] : std::initializer_list<std::pair<const char*, YamlType>>{{"", null},
                                                                                   {"~", null},
                                                                                   {"Null", null},
                                                                                   {"true", boolean},
                                                                                   {"FALSE", boolean},
                                                                                   {"yes", YamlType::text},
                                                                                   {"7", integer},
                                                                                   {"-0", integer},
                                                                                   {"+12", integer},
                                                                                   {"0x1F", integer},
                                                                                   {"0o17", integer},
                                                                                   {"0x", YamlType::text},
                                                                                   {"1.5", real},
                                                                                   {".5", real},
                                                                                   {"1.", real},
                                                                                   {"1e9", real},
                                                                                   {"-.inf", real},
                                                                                   {".NaN", real},
                                                                                   {"1e", YamlType::text},
                                                                                   {".", YamlType::text},
                                                                                   {"-", YamlType::text},
                                                                                   {"1_000", YamlType::text},
                                                                                   {"1:30", YamlType::text},
                                                                                   {"nan", YamlType::text}}) {
    EXPECT_EQ(yaml_type(text), type) << text;
  }
}

// Whatever a file repeats, reading or refusing it takes a moment: nothing in the parser is quadratic within the limits.
TEST(Yaml, HostileFilesCostLittle) {
  for (std::string unit : {"[",   "{",    ":",       "-",    "'",    " ",   "#",   "%",    "? ",
                           "- ",  "a: ",  "a:\n",    "[a: ", "{a: ", "&a ", "*a ", "'a' ", "--- ",
                           "!a ", "[]: ", "\"a\": ", "# \n", "-\n",  "?\n", "|\n", "[,"}) {
    for (std::string start : {"", "a: [", "a:\n - "}) {
      std::string text = start;
      while (text.size() + unit.size() <= 256000) text += unit;
      auto begin = std::chrono::steady_clock::now();
      try {
        parse_yaml(text, "c.yaml");
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::input);
      }
      EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 5) << start << unit;
    }
  }
}

TEST(Yaml, MessagesShowTextOnOneLine) {
  EXPECT_EQ(shown("a\nb"), "'a b'");
  EXPECT_EQ(shown(std::string(59, 'x') + "é" + "y"), "'" + std::string(59, 'x') + "...'");
}

}  // namespace
}  // namespace kinora::test
