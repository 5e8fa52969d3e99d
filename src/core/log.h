// What the library has to say besides results and errors: one line each, for people who look into a run.
#pragma once

#include <string>

namespace kinora {

enum class LogLevel { debug, info, warning, off };

// Lines below this level are dropped, the others go to stderr; `warning` at first.
void set_log_level(LogLevel level);

void log(LogLevel level, const std::string& line);

}  // namespace kinora
