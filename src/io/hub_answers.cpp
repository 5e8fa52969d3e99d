#include "io/hub_answers.h"

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace kinora::hub {
namespace {

using Json = nlohmann::json;

constexpr int kDeepest = 16;
constexpr size_t kMostValues = 1'000'000;  // bounds the memory that an answer takes when parsed

Json parse(const std::string& body, const std::string& what) {
  size_t values = 0;
  Json::parser_callback_t guard = [&](int depth, Json::parse_event_t, Json&) {
    if (depth > kDeepest || ++values > kMostValues)
      fail(ErrorKind::io, what + ": the hub's answer is nested too deeply or too long");
    return true;
  };
  try {
    return Json::parse(body, guard);
  } catch (const Json::exception&) {
    fail(ErrorKind::io, what + ": the hub's answer is no JSON; does HF_ENDPOINT name a hub?");
  }
}

std::string text_of(const Json& object, const char* key) {
  return object.is_object() && object.contains(key) && object[key].is_string() ? object[key].get<std::string>() : "";
}

TreeEntry read_entry(const Json& item, const std::string& what) {
  TreeEntry entry{text_of(item, "path"), 0, text_of(item, "oid"), "", text_of(item, "xetHash")};
  if (!valid_file_path(entry.path)) {
    std::string shown = Json(entry.path.substr(0, 80)).dump(-1, ' ', true, Json::error_handler_t::replace);
    fail(ErrorKind::input,
         what + " lists a file of the name " + shown + ", which could lead out of its folder; nothing was downloaded");
  }
  if (item.contains("lfs") && item["lfs"].is_object()) {
    entry.sha256 = text_of(item["lfs"], "oid");
    if (!is_sha256(entry.sha256)) fail(ErrorKind::io, what + ": the hub gives no SHA-256 for " + entry.path);
  }
  bool sized = item.contains("size") && item["size"].is_number_unsigned();
  if (!sized || item["size"].get<uint64_t>() > uint64_t{1} << 60)
    fail(ErrorKind::io, what + ": the hub gives no size for " + entry.path);
  entry.size = item["size"].get<uint64_t>();
  return entry;
}

}  // namespace

std::string parse_commit(const std::string& body, const std::string& what) {
  std::string commit = text_of(parse(body, what), "sha");
  if (!is_commit(commit))
    fail(ErrorKind::io, what + ": the hub's answer names no commit; does HF_ENDPOINT name a hub?");
  return commit;
}

std::vector<TreeEntry> parse_tree(const std::string& body, const std::string& what) {
  Json items = parse(body, what);
  if (!items.is_array()) fail(ErrorKind::io, what + ": the hub's list of files is no list");
  std::vector<TreeEntry> entries;
  for (const Json& item : items) {
    if (text_of(item, "type") == "file") entries.push_back(read_entry(item, what));
  }
  return entries;
}

// <address>; rel="next"
std::string next_page(const std::string& link) {
  size_t rel = link.find("rel=\"next\""), open = link.rfind('<', rel), close = link.find('>', open);
  if (rel == std::string::npos || open == std::string::npos || close == std::string::npos || close > rel) return "";
  return link.substr(open + 1, close - open - 1);
}

std::string normalized_etag(std::string etag) {
  if (etag.starts_with("W/")) etag = etag.substr(2);
  std::erase(etag, '"');
  return etag;
}

}  // namespace kinora::hub
