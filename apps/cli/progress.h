// Progress on stderr: one line that is redrawn on a terminal, whatever its width, and plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "diffusion/pipeline.h"

namespace kinora::cli {

class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress();  // leaves the terminal's cursor on a fresh line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // The first picture of a batch, from 1, and how many are asked for; "film" for films.
  void begin(int64_t picture, int64_t pictures, const char* noun = "picture");
  void report(const StageReport& report);
  void note(const std::string& line);  // a line of its own
  void clear();                        // takes the redrawn line away, for other output

 private:
  using Clock = std::chrono::steady_clock;
  std::string plain(const StageReport& report) const;
  std::string redrawn(const StageReport& report, int width) const;

  bool quiet_, terminal_, drawn_ = false;
  int64_t picture_ = 1, pictures_ = 1;
  const char* noun_ = "picture";
  Clock::time_point stage_start_, part_start_;
  double last_part_ = 0, spent_ = 0;  // seconds of the last part and of the stage so far
};

}  // namespace kinora::cli
