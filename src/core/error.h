// The one exception type of the library. A message is one line: what is wrong, where, and what to do.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace kinora {

#ifdef __cpp_lib_source_location
using SourceLocation = std::source_location;
#else  // Clang before 16, which builds the fuzz targets
struct SourceLocation {
  const char* file;
  unsigned at;
  static constexpr SourceLocation current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
  constexpr const char* file_name() const { return file; }
  constexpr unsigned line() const { return at; }
};
#endif

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
  Error(ErrorKind kind, const std::string& message, SourceLocation where = SourceLocation::current())
      : std::runtime_error(message), kind_(kind), where_(where) {}

  ErrorKind kind() const { return kind_; }
  // Where in Kinora's own source it was found; a user is shown this only for an internal error.
  const SourceLocation& where() const { return where_; }

 private:
  ErrorKind kind_;
  SourceLocation where_;
};

[[noreturn]] inline void fail(ErrorKind kind, const std::string& message,
                              SourceLocation where = SourceLocation::current()) {
  throw Error(kind, message, where);
}

// Throws an internal error: for invariants that no input of a user can break.
inline void check(bool ok, std::string_view message, SourceLocation where = SourceLocation::current()) {
  if (!ok) fail(ErrorKind::internal, std::string(message), where);
}

}  // namespace kinora
