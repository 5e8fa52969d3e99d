// What `kinora generate --prompt-file` asks for.
#pragma once

#include <string>
#include <vector>

#include "generate.h"
#include "setting_flags.h"

namespace kinora::cli {

// One prompt's options: all that was asked for, with what its line says instead.
struct Job {
  GenerateOptions options;
  std::string where;  // "prompts.jsonl:3"; empty when it is of no file
};

// The prompt given, or one job for each line of the prompt file that is not blank. Where the first line begins with
// '{', each is a JSON object of options, named as flags ("init_image") or as keys of a configuration
// ("sampling.steps"). `flags` are bound to `options`, which are as before when it returns. Throws Error(input) naming
// file, line and key.
std::vector<Job> read_jobs(GenerateOptions& options, const SettingFlags& flags);

// Runs `body`; where it fails because of what was asked for, says in which line.
template <class F>
void at_line(const Job& job, const F& body) {
  try {
    body();
  } catch (const Error& error) {
    bool asked = error.kind() == ErrorKind::usage || error.kind() == ErrorKind::input || error.kind() == ErrorKind::io;
    if (job.where.empty() || !asked) throw;
    throw Error(error.kind() == ErrorKind::io ? ErrorKind::io : ErrorKind::input, job.where + ": " + error.what());
  }
}

}  // namespace kinora::cli
