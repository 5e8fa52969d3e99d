// The one exception type of the library. A message is one line: what is wrong, where, and what to do.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace kinora {

// Kinds map to the program's exit status and, later, to HTTP status codes.
enum class ErrorKind {
  usage,      // the caller asked for something impossible (bad flag, bad size)
  input,      // a file or a text given by the user is wrong
  model,      // a checkpoint does not fit its config, or is damaged
  io,         // the operating system refused (missing file, full disk)
  resource,   // not enough memory
  cancelled,  // the caller asked to stop
  internal,   // a bug in Kinora
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}

  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

[[noreturn]] inline void fail(ErrorKind kind, const std::string& message) { throw Error(kind, message); }

// Throws an internal error: for invariants that no input of a user can break.
inline void check(bool ok, std::string_view message) {
  if (!ok) fail(ErrorKind::internal, std::string(message));
}

}  // namespace kinora
