// The one exception type of the library. A message is one line: what is wrong, where, and what to do.
#pragma once

#include <source_location>
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
  Error(ErrorKind kind, const std::string& message, std::source_location where = std::source_location::current())
      : std::runtime_error(message), kind_(kind), where_(where) {}

  ErrorKind kind() const { return kind_; }
  // Where in Kinora's own source it was found; a user is shown this only for an internal error.
  const std::source_location& where() const { return where_; }

 private:
  ErrorKind kind_;
  std::source_location where_;
};

[[noreturn]] inline void fail(ErrorKind kind, const std::string& message,
                              std::source_location where = std::source_location::current()) {
  throw Error(kind, message, where);
}

// Throws an internal error: for invariants that no input of a user can break.
inline void check(bool ok, std::string_view message, std::source_location where = std::source_location::current()) {
  if (!ok) fail(ErrorKind::internal, std::string(message), where);
}

}  // namespace kinora
