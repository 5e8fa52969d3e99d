#include "io/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "core/error.h"
#include "io/file.h"

namespace kinora {
namespace {

constexpr size_t kLargest = size_t{256} << 10, kMostNodes = 10000, kMostText = 4 * kLargest, kDeepest = 32;

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

// The text with what is needed to say where in it something is.
class Source {
 public:
  Source(std::string_view text, const std::string& name) : text_(text), name_(name) {
    for (size_t at = 0; at != std::string_view::npos;) {
      lines_.push_back(at);
      at = text.find('\n', at);
      if (at != std::string_view::npos) ++at;
    }
  }

  // yaml-cpp counts lines and bytes from 0.
  YamlPlace place(int line, int byte) const {
    if (line < 0 || byte < 0) return {};
    size_t l = std::min(static_cast<size_t>(line), lines_.size() - 1);
    std::string_view before = text_.substr(lines_[l], static_cast<size_t>(byte));
    return {static_cast<int>(l) + 1,
            static_cast<int>(std::count_if(before.begin(), before.end(), [](char c) { return !continues(c); })) + 1};
  }
  YamlPlace place(const YAML::Mark& mark) const { return place(mark.line, mark.column); }
  YamlPlace place_of(size_t offset) const {
    auto line = std::upper_bound(lines_.begin(), lines_.end(), offset) - lines_.begin() - 1;
    return place(static_cast<int>(line), static_cast<int>(offset - lines_[static_cast<size_t>(line)]));
  }

  [[noreturn]] void refuse(YamlPlace at, const std::string& what) const {
    std::string where = at.line ? ":" + std::to_string(at.line) + ":" + std::to_string(at.column) : "";
    fail(ErrorKind::input, name_ + where + ": " + what);
  }

 private:
  std::string_view text_;
  const std::string& name_;
  std::vector<size_t> lines_;
};

// Bytes of the UTF-8 character at the start of `rest`, 0 when there is none.
size_t character(std::string_view rest) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(rest[i]); };
  size_t length = byte(0) < 0x80 ? 1 : byte(0) < 0xc2 ? 0 : byte(0) < 0xe0 ? 2 : byte(0) < 0xf0 ? 3 : 4;
  if (length == 0 || byte(0) > 0xf4 || rest.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!continues(rest[i])) return 0;
  }
  bool low = (byte(0) == 0xe0 && byte(1) < 0xa0) || (byte(0) == 0xf0 && byte(1) < 0x90);
  bool high = (byte(0) == 0xed && byte(1) > 0x9f) || (byte(0) == 0xf4 && byte(1) > 0x8f);
  return low || high ? 0 : length;
}

// What YAML forbids, or what yaml-cpp would pass over in silence: to it, the byte 4 is the end of the file.
void check_characters(std::string_view text, const Source& source) {
  bool indent = true;
  for (size_t at = 0; at < text.size();) {
    size_t length = character(text.substr(at));
    unsigned char c = static_cast<unsigned char>(text[at]);
    if (length == 0) source.refuse(source.place_of(at), "not UTF-8");
    bool line_end = c == '\n' || (c == '\r' && at + 1 < text.size() && text[at + 1] == '\n');
    if ((c < ' ' && c != '\t' && !line_end) || c == 0x7f)
      source.refuse(source.place_of(at), "a control character, which YAML does not allow");
    if (c == '\t' && indent) source.refuse(source.place_of(at), "a tab; YAML is indented with spaces");
    indent = c == '\n' || (indent && c == ' ');
    at += length;
  }
}

// Builds the tree from yaml-cpp's events, so that limits hold while the text is read.
class Builder : public YAML::EventHandler {
 public:
  explicit Builder(const Source& source) : source_(source) {}

  YamlNode root;

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (begun_) source_.refuse(source_.place(mark), "a second document; a configuration is one");
    begun_ = true;
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    YamlNode node = scalar(mark, true);
    count(node, open_.size(), node.place);
    add(std::move(node), anchor);
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_tag(mark, tag);
    YamlNode node = scalar(mark, tag == "?");
    node.kind = YamlNode::Kind::scalar;
    node.text = value;
    if (value.find('\0') != std::string::npos) source_.refuse(node.place, "a text with a zero byte");
    count(node, open_.size(), node.place);
    add(std::move(node), anchor);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    auto known = anchors_.find(anchor);
    YamlPlace at = source_.place(mark);
    if (known == anchors_.end()) source_.refuse(at, "an alias inside its own anchor");
    count(known->second, open_.size(), at);
    YamlNode copy = known->second;
    copy.place = at;
    add(std::move(copy), 0);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    begin(mark, tag, anchor, YamlNode::Kind::list);
  }
  void OnSequenceEnd() override { end(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    begin(mark, tag, anchor, YamlNode::Kind::map);
  }
  void OnMapEnd() override { end(); }

 private:
  struct Open {  // a list or a map whose end has not come
    YamlNode node;
    YAML::anchor_t anchor = 0;
    bool has_key = false;
    std::string key = {};
    YamlPlace key_place = {};
    std::map<std::string, YamlPlace> keys = {};
  };

  YamlNode scalar(const YAML::Mark& mark, bool plain) const {
    YamlNode node;
    node.plain = plain;
    node.place = source_.place(mark);
    return node;
  }
  void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    if (tag != "?" && tag != "!" && !tag.empty())
      source_.refuse(source_.place(mark), "the tag " + shown(tag) + "; configurations have none");
  }
  // Keeps what has been read, `node` at this depth included, within the limits.
  void count(const YamlNode& node, size_t depth, YamlPlace at) {
    if (node.kind >= YamlNode::Kind::list && depth >= kDeepest)
      source_.refuse(at, "nested deeper than " + std::to_string(kDeepest) + " levels");
    text_ += node.key.size() + node.text.size();
    if (++nodes_ > kMostNodes || text_ > kMostText)
      source_.refuse(at, "more than " + std::to_string(kMostNodes) + " values or 1 MiB, with what aliases stand for");
    for (const YamlNode& child : node.children) count(child, depth + 1, at);
  }

  void begin(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind) {
    refuse_tag(mark, tag);
    YamlNode node = scalar(mark, true);
    node.kind = kind;
    count(node, open_.size(), node.place);
    if (wants_key()) refuse_key(node.place);
    open_.push_back({std::move(node), anchor});
  }
  void end() {
    Open done = std::move(open_.back());
    open_.pop_back();
    if (done.anchor) anchors_[done.anchor] = done.node;
    place_in_parent(std::move(done.node));
  }

  bool wants_key() const {
    return !open_.empty() && open_.back().node.kind == YamlNode::Kind::map && !open_.back().has_key;
  }
  [[noreturn]] void refuse_key(YamlPlace at) const {
    source_.refuse(at, "a key that is no text (a number or another word of YAML as a key needs quotes)");
  }

  void add(YamlNode node, YAML::anchor_t anchor) {
    if (anchor) anchors_[anchor] = node;
    if (!wants_key()) return place_in_parent(std::move(node));
    Open& map = open_.back();
    if (node.kind != YamlNode::Kind::scalar || (node.plain && yaml_type(node.text) != YamlType::text))
      refuse_key(node.place);
    auto [earlier, is_new] = map.keys.emplace(node.text, node.place);
    if (!is_new)
      source_.refuse(node.place, "the key " + shown(node.text) + " again; it was given in line " +
                                     std::to_string(earlier->second.line));
    map.has_key = true;
    map.key = node.text;
    map.key_place = node.place;
  }
  void place_in_parent(YamlNode node) {
    if (open_.empty()) {
      root = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::map) {
      node.key = std::move(parent.key);
      node.key_place = parent.key_place;
      // yaml-cpp notices that a value is absent at whatever comes next.
      if (node.kind == YamlNode::Kind::null && node.place.line != node.key_place.line) node.place = node.key_place;
      parent.has_key = false;
    }
    parent.node.children.push_back(std::move(node));
  }

  const Source& source_;
  bool begun_ = false;
  size_t nodes_ = 0, text_ = 0;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, YamlNode> anchors_;
};

// What is most often behind a message of yaml-cpp.
std::string hint(const std::string& message) {
  using namespace YAML::ErrorMsg;
  if (message == END_OF_MAP || message == END_OF_SEQ) return " (is the indentation right?)";
  if (message == END_OF_MAP_FLOW) return " (is a } missing? ${...} between { and } needs quotes)";
  if (message == END_OF_SEQ_FLOW) return " (is a ] missing?)";
  if (message == MAP_VALUE) return " (a text with a colon and a space needs quotes)";
  if (message == UNKNOWN_TOKEN) return " (a text that starts with this character needs quotes)";
  if (message == DOC_IN_SCALAR) return " (a quote is not closed)";
  return "";
}

}  // namespace

YamlNode parse_yaml(std::string_view text, const std::string& name) {
  if (text.size() > kLargest)
    fail(ErrorKind::input,
         name + " is larger than " + std::to_string(kLargest >> 10) + " KiB; that is no configuration");
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // a byte order mark
  Source source(text, name);
  check_characters(text, source);
  Builder builder(source);
  // yaml-cpp takes the end of the file for the end of a quoted text, but not the mark that ends a document.
  std::istringstream stream(std::string(text) + (text.ends_with('\n') ? "...\n" : "\n...\n"));
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    source.refuse(source.place(error.mark), "not valid YAML: " + error.msg + hint(error.msg));
  }
  if (builder.root.kind == YamlNode::Kind::null) {
    builder.root.kind = YamlNode::Kind::map;
  } else if (builder.root.kind != YamlNode::Kind::map) {
    source.refuse(builder.root.place, "a configuration is a map of keys to values");
  }
  return std::move(builder.root);
}

YamlNode load_yaml(const std::string& path, const std::string& name) {
  return parse_yaml(read_file(path, kLargest), name);
}

YamlType yaml_type(std::string_view plain) {
  auto is = [&](std::initializer_list<const char*> words) {
    return std::any_of(words.begin(), words.end(), [&](const char* word) { return plain == word; });
  };
  if (is({"", "~", "null", "Null", "NULL"})) return YamlType::null;
  if (is({"true", "True", "TRUE", "false", "False", "FALSE"})) return YamlType::boolean;
  if (is({".nan", ".NaN", ".NAN"})) return YamlType::real;
  std::string_view rest = plain.substr(plain[0] == '-' || plain[0] == '+' ? 1 : 0);
  if (rest == ".inf" || rest == ".Inf" || rest == ".INF") return YamlType::real;
  auto digits = [&](const char* set) {  // takes them off `rest`, tells whether there were any
    size_t n = std::min(rest.find_first_not_of(set), rest.size());
    rest.remove_prefix(n);
    return n > 0;
  };
  if (rest.starts_with("0x") || rest.starts_with("0o")) {
    const char* set = rest[1] == 'x' ? "0123456789abcdefABCDEF" : "01234567";
    rest.remove_prefix(2);
    return digits(set) && rest.empty() ? YamlType::integer : YamlType::text;
  }
  const char* decimal = "0123456789";
  bool any = digits(decimal);
  if (any && rest.empty()) return YamlType::integer;
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    any = digits(decimal) || any;
  }
  if (any && (rest.starts_with('e') || rest.starts_with('E'))) {
    rest.remove_prefix(1);
    if (rest.starts_with('-') || rest.starts_with('+')) rest.remove_prefix(1);
    any = digits(decimal);
  }
  return any && rest.empty() ? YamlType::real : YamlType::text;
}

std::string shown(std::string_view text) {
  constexpr size_t kShown = 60;
  std::string out;
  for (char c : text.substr(0, kShown)) out += static_cast<unsigned char>(c) < ' ' || c == 0x7f ? ' ' : c;
  if (text.size() > kShown) {
    while (!out.empty() && continues(text[out.size()])) out.pop_back();
    out += "...";
  }
  return "'" + out + "'";
}

}  // namespace kinora
