// HTTP for the hub: redirects by hand, so that the token never leaves the host that it is for; time-outs, and retries
// with growing pauses. One object per thread.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "core/error.h"
#include "io/hub_settings.h"

namespace kinora::hub {

struct Response {
  long status = 0;
  std::string url;                             // that answered
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  std::string header(const char* name) const;  // empty when absent
};

// A request that failed. `retry`: it may work later, after `wait` seconds when the server said so (else negative).
class TransferError : public Error {
 public:
  TransferError(ErrorKind kind, const std::string& message, bool again, double seconds = -1)
      : Error(kind, message), retry(again), wait(seconds) {}
  bool retry;
  double wait;
};

// Percent-encodes a path (keeping slashes) or one part of it.
std::string encode_path(std::string_view path);
std::string encode_part(std::string_view part);
// Whether a request that began at `from` may take its token along to `to`: the same scheme, host and port, or both are
// Hugging Face's own.
bool same_authority(const std::string& from, const std::string& to);

class Http {
 public:
  Http(const Settings& settings, const std::atomic<bool>* stop);
  ~Http();
  Http(const Http&) = delete;
  Http& operator=(const Http&) = delete;

  using Notice = std::function<void(const std::string& what)>;  // a retry and its reason, for the user
  void on_notice(Notice notice) { notice_ = std::move(notice); }

  // The whole body, at most `limit` bytes. Retries; throws TransferError or Error(cancelled). The answer may be an
  // error of the server's (4xx): the caller says what it means.
  Response get(const std::string& url, size_t limit);
  // The headers. A redirect to another host is not followed but returned: its own headers describe the file.
  Response head(const std::string& url);
  // Bytes from `offset` on go to `sink`, after `begin` has seen the headers of an answer that is no error. One attempt.
  using Begin = std::function<void(const Response& response)>;
  using Sink = std::function<void(const char* data, size_t size)>;
  Response stream(const std::string& url, uint64_t offset, const Begin& begin, const Sink& sink);

  // Sleeps as long as the error asks for, or the back-off of the `attempt`th failure (from 0); tells the user. Throws
  // the error itself when it cannot be retried, and Error(cancelled).
  void pause(const TransferError& error, int attempt);

 private:
  struct Call;
  Response once(Call& call);
  Response follow(Call& call, bool across_hosts);
  Response retried(Call& call, bool across_hosts);
  const Settings& settings_;
  const std::atomic<bool>* stop_;
  Notice notice_;
  void* easy_ = nullptr;
};

// What an answer of 4xx or 5xx means, as an error to throw; `what` names the thing asked for.
TransferError refusal(const Response& response, const std::string& what);

}  // namespace kinora::hub
