#include "io/hub_settings.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <filesystem>

#include "core/error.h"
#include "io/file.h"

namespace kinora::hub {
namespace {

namespace fs = std::filesystem;

// An empty variable counts as not set.
std::string first_of(const GetVariable& get, std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (auto value = get(name); value && !value->empty()) return *value;
  }
  return "";
}

bool is_true(const GetVariable& get, std::initializer_list<const char*> names) {
  std::string value = first_of(get, names);
  for (char& c : value) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return value == "1" || value == "ON" || value == "YES" || value == "TRUE";
}

double seconds(const GetVariable& get, const char* name, double fallback) {
  std::string value = first_of(get, {name});
  if (value.empty()) return fallback;
  int number = 0;
  auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size() || number < 0 || number > 86400)
    fail(ErrorKind::usage, std::string(name) + " must be a whole number of seconds, not '" + value + "'");
  return number ? number : fallback;
}

// ~, $NAME and ${NAME}, as Python's expanduser and expandvars do; an unknown variable stays as it is.
std::string expand(const GetVariable& get, std::string path) {
  if (path == "~" || path.starts_with("~/")) path = first_of(get, {"HOME"}) + path.substr(1);
  std::string result;
  for (size_t i = 0; i < path.size(); ++i) {
    bool braces = path.compare(i, 2, "${") == 0;
    size_t begin = i + (braces ? 2 : 1), end = begin;
    while (path[i] == '$' && end < path.size() &&
           (std::isalnum(static_cast<unsigned char>(path[end])) || path[end] == '_'))
      ++end;
    bool closed = !braces || (end < path.size() && path[end] == '}');
    std::optional<std::string> value;
    if (path[i] == '$' && end > begin && closed) value = get(path.substr(begin, end - begin).c_str());
    if (value) {
      result += *value;
      i = braces ? end : end - 1;
    } else {
      result += path[i];
    }
  }
  return result;
}

std::string clean_token(std::string token) {
  std::erase_if(token, [](char c) { return c == '\r' || c == '\n'; });
  while (!token.empty() && std::isspace(static_cast<unsigned char>(token.back()))) token.pop_back();
  size_t first = token.find_first_not_of(" \t\v\f");
  token = first == std::string::npos ? "" : token.substr(first);
  for (char c : token) {
    if (static_cast<unsigned char>(c) <= ' ' || static_cast<unsigned char>(c) >= 127)
      fail(ErrorKind::usage,
           "the Hugging Face token holds a character that no token has; check HF_TOKEN or the token file");
  }
  return token;
}

std::string read_token(const GetVariable& get, const std::string& home) {
  if (is_true(get, {"HF_HUB_DISABLE_IMPLICIT_TOKEN"})) return "";
  std::string token = clean_token(first_of(get, {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"}));
  if (!token.empty()) return token;
  std::string file = first_of(get, {"HF_TOKEN_PATH"});
  file = file.empty() ? (fs::path(home) / "token").string() : expand(get, file);
  std::error_code error;
  return fs::is_regular_file(file, error) ? clean_token(read_file(file, 65536)) : "";
}

std::string read_endpoint(const GetVariable& get, const std::string& fallback) {
  std::string endpoint = first_of(get, {"HF_ENDPOINT"});
  if (endpoint.empty()) return fallback;
  while (endpoint.ends_with('/')) endpoint.pop_back();
  bool plain =
      std::none_of(endpoint.begin(), endpoint.end(), [](char c) { return static_cast<unsigned char>(c) <= ' '; });
  if (!plain || (!endpoint.starts_with("https://") && !endpoint.starts_with("http://")))
    fail(ErrorKind::usage, "HF_ENDPOINT must be an http or https address, not '" + endpoint + "'");
  return endpoint;
}

}  // namespace

Settings read_settings(const GetVariable& given) {
  GetVariable get = given ? given : [](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    return value ? std::optional<std::string>(value) : std::nullopt;
  };
  Settings s;
  std::string home = first_of(get, {"HF_HOME"});
  if (home.empty()) {
    std::string caches = first_of(get, {"XDG_CACHE_HOME"});
    home = (caches.empty() ? std::string("~/.cache") : caches) + "/huggingface";
  }
  home = expand(get, home);
  std::string cache = first_of(get, {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"});
  s.cache = fs::absolute(cache.empty() ? home + "/hub" : expand(get, cache)).lexically_normal().string();
  s.endpoint = read_endpoint(get, s.endpoint);
  s.token = read_token(get, home);
  s.offline = is_true(get, {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"});
  s.symlinks = !is_true(get, {"HF_HUB_DISABLE_SYMLINKS"});
  s.shared_blobs = !is_true(get, {"HF_HUB_DISABLE_SHARED_BLOBS"}) && !is_true(get, {"HF_HUB_DISABLE_XET"});
  s.progress_bars = !is_true(get, {"HF_HUB_DISABLE_PROGRESS_BARS"});
  s.metadata_timeout = seconds(get, "HF_HUB_ETAG_TIMEOUT", s.metadata_timeout);
  s.download_timeout = seconds(get, "HF_HUB_DOWNLOAD_TIMEOUT", s.download_timeout);
  return s;
}

}  // namespace kinora::hub
