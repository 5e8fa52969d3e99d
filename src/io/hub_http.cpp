#include "io/hub_http.h"

#include <curl/curl.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

namespace kinora::hub {
namespace {

constexpr int kMostRedirects = 10;
constexpr size_t kMostHeaders = size_t{256} << 10;
constexpr double kLongestWait = 300;

struct UrlDeleter {
  void operator()(CURLU* url) const { curl_url_cleanup(url); }
};
using ParsedUrl = std::unique_ptr<CURLU, UrlDeleter>;

ParsedUrl parse_url(const std::string& text) {
  ParsedUrl url(curl_url());
  if (curl_url_set(url.get(), CURLUPART_URL, text.c_str(), 0) != CURLUE_OK) return nullptr;
  return url;
}

std::string part_of(CURLU* url, CURLUPart part, unsigned flags = 0) {
  char* text = nullptr;
  if (!url || curl_url_get(url, part, &text, flags) != CURLUE_OK) return "";
  std::string result(text);
  curl_free(text);
  return result;
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string authority(const std::string& text) {
  ParsedUrl url = parse_url(text);
  return lower(part_of(url.get(), CURLUPART_SCHEME) + "://" + part_of(url.get(), CURLUPART_HOST)) + ":" +
         part_of(url.get(), CURLUPART_PORT, CURLU_DEFAULT_PORT);
}

std::string host_of(const std::string& text) { return part_of(parse_url(text).get(), CURLUPART_HOST); }

// Answered by the server and meant: never a retry.
[[noreturn]] void refuse(const std::string& message) { throw TransferError(ErrorKind::io, message, false); }

// A redirect's target. Never to less safety than https had, and to nothing but http and https.
std::string redirect_target(const std::string& from, const std::string& location) {
  ParsedUrl url = parse_url(from);
  if (!url || location.size() > 16384 || curl_url_set(url.get(), CURLUPART_URL, location.c_str(), 0) != CURLUE_OK)
    refuse(host_of(from) + " redirects to an address that cannot be read");
  std::string to = part_of(url.get(), CURLUPART_URL), scheme = part_of(url.get(), CURLUPART_SCHEME);
  if (scheme != "https" && !(scheme == "http" && from.starts_with("http://")))
    refuse(host_of(from) + " redirects from https to " + scheme + ", which is not followed");
  return to;
}

// Distributions keep their certificates in different places; a packed program must find them all.
const char* certificates() {
  for (const char* name : {"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"}) {
    if (const char* file = std::getenv(name); file && *file) return file;
  }
  for (const char* file : {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
                           "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"}) {
    if (::access(file, R_OK) == 0) return file;
  }
  return nullptr;
}

std::string encode(std::string_view text, const char* kept) {
  std::string result;
  for (char c : text) {
    if (std::isalnum(static_cast<unsigned char>(c)) || std::strchr(kept, c)) {
      result += c;
    } else {
      result += '%';
      result += "0123456789ABCDEF"[static_cast<unsigned char>(c) >> 4];
      result += "0123456789ABCDEF"[static_cast<unsigned char>(c) & 15];
    }
  }
  return result;
}

bool worth_retrying(CURLcode code) {
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM: return true;
    default: return false;
  }
}

// Seconds that a server asks to wait: Retry-After, or the reset time of a RateLimit header ("api";r=0;t=55).
double asked_wait(const Response& response) {
  std::string after = response.header("retry-after"), limit = response.header("ratelimit");
  if (!after.empty() && std::isdigit(static_cast<unsigned char>(after[0]))) return std::atof(after.c_str());
  size_t at = limit.find(";t=");
  return limit.find(";r=0") != std::string::npos && at != std::string::npos ? std::atof(limit.c_str() + at + 3) : -1;
}

}  // namespace

std::string encode_path(std::string_view path) { return encode(path, "/-._~"); }
std::string encode_part(std::string_view part) { return encode(part, "-._~"); }

bool same_authority(const std::string& from, const std::string& to) {
  auto hub = [](const std::string& a) { return a == "https://huggingface.co:443" || a == "https://hf.co:443"; };
  std::string a = authority(from), b = authority(to);
  return a == b || (hub(a) && hub(b));
}

std::string Response::header(const char* name) const {
  auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

struct Http::Call {
  std::string url;
  bool head = false, trusted = true;  // trusted: no redirect has led away from the host that the token is for
  uint64_t offset = 0;
  size_t limit = 0;
  double timeout = 10, longest = 0;  // seconds without a byte; in all, 0: no limit
  const Begin* begin = nullptr;
  const Sink* sink = nullptr;
  // while it runs
  Response response;
  size_t header_bytes = 0;
  bool begun = false, stalled = false;
  uint64_t seen = 0;
  std::chrono::steady_clock::time_point moved;
  const std::atomic<bool>* stop = nullptr;
  std::exception_ptr thrown;

  // Bodies of errors and redirects are read for their text alone.
  void receive(const char* data, size_t size) {
    if (!sink || response.status / 100 != 2) {
      size_t most = sink ? size_t{65536} : limit;
      if (response.body.size() + size > most) {
        if (response.status / 100 == 2)
          refuse(host_of(url) + " sends more than " + std::to_string(limit) +
                 " bytes, for what should be a short answer");
        size = std::min(size, most - std::min(most, response.body.size()));
      }
      response.body.append(data, size);
      return;
    }
    if (!begun) start();
    (*sink)(data, size);
  }
  void start() {
    begun = true;
    if (begin && *begin) (*begin)(response);
  }
  void receive_header(std::string line) {
    header_bytes += line.size();
    if (header_bytes > kMostHeaders) refuse(host_of(url) + " sends more than 256 KiB of headers");
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    if (line.starts_with("HTTP/")) {
      response.headers.clear();
      size_t space = line.find(' ');
      response.status = space == std::string::npos ? 0 : std::atol(line.c_str() + space);
    } else if (size_t colon = line.find(':'); colon != std::string::npos) {
      size_t value = line.find_first_not_of(" \t", colon + 1);
      for (char& c : line) c = static_cast<unsigned char>(c) < ' ' || static_cast<unsigned char>(c) > '~' ? '?' : c;
      response.headers[lower(line.substr(0, colon))] = value == std::string::npos ? "" : line.substr(value);
    }
  }

  template <class F>
  size_t guarded(size_t size, F&& body) {
    try {
      body();
      return size;
    } catch (...) {
      thrown = std::current_exception();
      return size == 0 ? 1 : 0;
    }
  }
  static size_t on_body(char* data, size_t, size_t size, void* self) {
    auto* call = static_cast<Call*>(self);
    return call->guarded(size, [&] { call->receive(data, size); });
  }
  static size_t on_header(char* data, size_t, size_t size, void* self) {
    auto* call = static_cast<Call*>(self);
    return call->guarded(size, [&] { call->receive_header(std::string(data, size)); });
  }
  // Called about once a second, and more often while bytes arrive.
  static int on_progress(void* self, curl_off_t, curl_off_t received, curl_off_t, curl_off_t) {
    auto* call = static_cast<Call*>(self);
    auto now = std::chrono::steady_clock::now();
    if (uint64_t bytes = static_cast<uint64_t>(received) + call->header_bytes; bytes != call->seen) {
      call->seen = bytes;
      call->moved = now;
    }
    call->stalled = now - call->moved > std::chrono::duration<double>(call->timeout);
    return call->stalled || (call->stop && *call->stop) ? 1 : 0;
  }
};

Http::Http(const Settings& settings, const std::atomic<bool>* stop) : settings_(settings), stop_(stop) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  easy_ = curl_easy_init();
  check(easy_, "libcurl could not start");
}

Http::~Http() { curl_easy_cleanup(easy_); }

Response Http::once(Call& call) {
  CURL* easy = easy_;
  auto set = [&](CURLoption option, auto value) {
    CURLcode code = curl_easy_setopt(easy, option, value);
    check(code == CURLE_OK, "libcurl refused option " + std::to_string(option) + ": " + curl_easy_strerror(code));
  };
  call.response = Response{};
  call.response.url = call.url;
  call.header_bytes = 0;
  call.begun = call.stalled = false;
  call.seen = 0;
  call.moved = std::chrono::steady_clock::now();
  call.thrown = nullptr;
  call.stop = stop_;
  char message[CURL_ERROR_SIZE] = "";
  set(CURLOPT_ERRORBUFFER, message);
  if (curl_easy_setopt(easy, CURLOPT_URL, call.url.c_str()) != CURLE_OK)
    refuse("the address " + call.url + " cannot be read");
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_FOLLOWLOCATION, 0L);
  set(CURLOPT_NOSIGNAL, 1L);
  (void)curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 256L << 10);  // refused while a failed connection keeps its buffer
  set(CURLOPT_NOBODY, call.head ? 1L : 0L);
  set(CURLOPT_USERAGENT, "kinora");
  if (const char* file = certificates()) set(CURLOPT_CAINFO, file);
  set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(call.timeout * 1000));
  if (call.longest > 0) set(CURLOPT_TIMEOUT_MS, static_cast<long>(call.longest * 1000));
  if (call.offset) set(CURLOPT_RANGE, (std::to_string(call.offset) + "-").c_str());
  set(CURLOPT_WRITEFUNCTION, &Call::on_body);
  set(CURLOPT_WRITEDATA, &call);
  set(CURLOPT_HEADERFUNCTION, &Call::on_header);
  set(CURLOPT_HEADERDATA, &call);
  set(CURLOPT_NOPROGRESS, 0L);
  set(CURLOPT_XFERINFOFUNCTION, &Call::on_progress);
  set(CURLOPT_XFERINFODATA, &call);
  struct ListDeleter {
    void operator()(curl_slist* list) const { curl_slist_free_all(list); }
  };
  std::unique_ptr<curl_slist, ListDeleter> headers(curl_slist_append(nullptr, "Accept-Encoding: identity"));
  if (!settings_.token.empty() && call.trusted)
    curl_slist_append(headers.get(), ("Authorization: Bearer " + settings_.token).c_str());
  set(CURLOPT_HTTPHEADER, headers.get());

  CURLcode result = curl_easy_perform(easy);
  curl_easy_reset(easy);  // it must not keep what ends here
  if (stop_ && *stop_) fail(ErrorKind::cancelled, "stopped");
  if (call.thrown) std::rethrow_exception(call.thrown);
  if (result != CURLE_OK) {
    std::string why = message[0] ? message : curl_easy_strerror(result);
    if (call.stalled) {
      why = "nothing arrived for " + std::to_string(static_cast<long>(call.timeout)) + " s";
      result = CURLE_OPERATION_TIMEDOUT;
    }
    throw TransferError(ErrorKind::io, "cannot reach " + host_of(call.url) + ": " + why, worth_retrying(result));
  }
  if (call.sink && !call.begun && call.response.status / 100 == 2) call.start();
  return std::move(call.response);
}

Response Http::follow(Call& call, bool across_hosts) {
  std::string first = call.url;
  call.trusted = true;
  for (int hop = 0; hop <= kMostRedirects; ++hop) {
    Response response = once(call);
    bool redirect = response.status / 100 == 3 && response.status != 304 && !response.header("location").empty();
    if (!redirect) {
      if (response.status / 100 == 3)
        refuse(host_of(call.url) + " answers with redirect " + std::to_string(response.status) + " to nowhere");
      return response;
    }
    std::string to = redirect_target(call.url, response.header("location"));
    bool same = same_authority(call.url, to);
    if (!across_hosts && !same) return response;
    call.trusted = call.trusted && same;
    call.url = to;
  }
  refuse(host_of(first) + " redirects more than " + std::to_string(kMostRedirects) + " times");
}

Response Http::retried(Call& call, bool across_hosts) {
  std::string url = call.url;
  for (int attempt = 0;; ++attempt) {
    try {
      call.url = url;
      Response response = follow(call, across_hosts);
      TransferError error = refusal(response, url);
      if (response.status / 100 < 4 || !error.retry) return response;
      throw error;
    } catch (const TransferError& error) {
      pause(error, attempt);
    }
  }
}

Response Http::get(const std::string& url, size_t limit) {
  Call call;
  call.url = url;
  call.limit = limit;
  call.timeout = settings_.metadata_timeout;
  call.longest = 60 + 6 * call.timeout;
  return retried(call, true);
}

Response Http::head(const std::string& url) {
  Call call;
  call.url = url;
  call.head = true;
  call.timeout = settings_.metadata_timeout;
  call.longest = 60 + 6 * call.timeout;
  return retried(call, false);
}

Response Http::stream(const std::string& url, uint64_t offset, const Begin& begin, const Sink& sink) {
  Call call;
  call.url = url;
  call.offset = offset;
  call.begin = &begin;
  call.sink = &sink;
  call.timeout = settings_.download_timeout;
  return follow(call, true);
}

void Http::pause(const TransferError& error, int attempt) {
  if (!error.retry || attempt >= settings_.retries) throw error;
  double seconds = error.wait >= 0 ? error.wait : settings_.backoff * static_cast<double>(1 << std::min(attempt, 3));
  if (seconds > kLongestWait)
    throw TransferError(error.kind(),
                        std::string(error.what()) + "; the server asks to wait " +
                            std::to_string(static_cast<long>(seconds)) + " s: try again then",
                        false);
  if (notice_)
    notice_(std::string(error.what()) + "; retry " + std::to_string(attempt + 1) + " of " +
            std::to_string(settings_.retries));
  auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < until) {
    if (stop_ && *stop_) fail(ErrorKind::cancelled, "stopped");
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

TransferError refusal(const Response& response, const std::string& what) {
  std::string code = response.header("x-error-code"), said = response.header("x-error-message").substr(0, 200);
  std::string status = "HTTP " + std::to_string(response.status);
  auto wrong = [&](const std::string& message) { return TransferError(ErrorKind::input, message, false); };
  if (code == "GatedRepo")
    return wrong(what + " is gated: accept its terms on its page on the hub, then set HF_TOKEN (or run hf auth login)");
  if (code == "RevisionNotFound") return wrong(what + ": the hub has no such revision (a branch, a tag or a commit)");
  if (code == "EntryNotFound") return wrong(what + ": the hub has no such file");
  if (said == "Invalid credentials in Authorization header" || said.starts_with("Invalid user"))
    return wrong("the hub does not accept the token; check HF_TOKEN or run hf auth login again");
  if (code == "RepoNotFound" || response.status == 401 || response.status == 404)
    return wrong(what + " is not on the hub, or is private: check the name, or set HF_TOKEN if it is yours");
  if (response.status == 403)
    return wrong(what + " may not be read with this token" + (said.empty() ? "" : " (" + said + ")"));
  if (response.status == 429)
    return TransferError(ErrorKind::io, "the hub limits requests (HTTP 429); a token (HF_TOKEN) raises the limit", true,
                         asked_wait(response));
  bool later = response.status == 408 || response.status >= 500;
  return TransferError(ErrorKind::io,
                       what + ": the server fails with " + status + (said.empty() ? "" : " (" + said + ")"), later,
                       later ? asked_wait(response) : -1);
}

}  // namespace kinora::hub
