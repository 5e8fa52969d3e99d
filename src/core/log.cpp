#include "core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace kinora {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return spdlog::level::debug;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::warning: return spdlog::level::warn;
    case LogLevel::off: return spdlog::level::off;
  }
  return spdlog::level::off;
}

// The one global object: spdlog's own registry is left alone, so that a host program may use it as it likes.
spdlog::logger& logger() {
  static spdlog::logger instance = [] {
    spdlog::logger made("kinora", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made.set_pattern("kinora: %^%l%$ %v");
    made.set_level(spdlog::level::warn);
    return made;
  }();
  return instance;
}

}  // namespace

void set_log_level(LogLevel level) { logger().set_level(to_spdlog(level)); }

void log(LogLevel level, const std::string& line) { logger().log(to_spdlog(level), line); }

}  // namespace kinora
