// How the program times what it runs.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "cli.h"
#include "diffusion/backends.h"

namespace kinora::cli {

// Seconds of each of `repeats` runs after a few to warm up, sorted; and of the processors, a run on average.
struct Times {
  std::vector<double> seconds;
  double processor = 0;

  double median() const { return seconds[seconds.size() / 2]; }
};
Times time_runs(int repeats, int warm_up, const std::function<void()>& body);

// What `kinora eval` is asked to measure besides the result; nothing with 0 repeats.
struct EvalTiming {
  int repeats = 0;
  bool by_op = false;

  // Prints one line of JSON: component, median_s, best_s, device_peak_mib, attention. Work that stays on a device is
  // timed there: inputs uploaded before, nothing copied back, the end waited for.
  void report(const std::string& component, const Executable& executable, const std::map<std::string, Tensor>& inputs,
              const Runtime& runtime) const;
};

}  // namespace kinora::cli
