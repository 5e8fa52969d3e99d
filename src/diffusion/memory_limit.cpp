#include "diffusion/memory_limit.h"

#include <unistd.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>

namespace kinora {

// Of a device, one part in so many is left for results and tables that no plan counts.
constexpr size_t kSpare = 32;

size_t parse_bytes(const std::string& text) {
  constexpr std::pair<const char*, double> kUnits[] = {
      {"", 1},          {"B", 1},         {"KB", 1e3},      {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
      {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"K", 1e3},  {"M", 1e6},  {"G", 1e9}};
  double number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(end, static_cast<size_t>(text.data() + text.size() - end));
  while (unit.starts_with(' ')) unit.erase(0, 1);
  for (const auto& [name, factor] : kUnits) {
    double bytes = number * factor;
    if (error == std::errc() && unit == name && bytes >= 1 && bytes < 1e18) return static_cast<size_t>(bytes);
  }
  fail(ErrorKind::usage, "an amount of memory is a number with MB, GB, MiB or GiB, as 12GB; not '" + text + "'");
}

std::string describe_bytes(size_t bytes) {
  char text[32];
  bool giga = bytes >= 1000000000;
  std::snprintf(text, sizeof text, "%.1f %s", static_cast<double>(bytes) / (giga ? 1e9 : 1e6), giga ? "GB" : "MB");
  return text;
}

size_t memory_in_use(const Runtime& runtime) {
  if (runtime.context.device) return 0;
  std::ifstream statm("/proc/self/statm");
  size_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

size_t weights_budget(const ComponentMemory& c, size_t limit, const Runtime& runtime, const std::string& advice) {
  bool device = runtime.context.device != nullptr;
  size_t spare = device ? limit / kSpare : 0, given = limit;
  limit -= spare;
  size_t base = memory_in_use(runtime) + (device ? 0 : c.beside);
  if (base + c.need.all() <= limit) return 0;
  size_t least = base + c.need.least_weights + c.need.streamed_working;
  if (least <= limit) return limit - base - c.need.streamed_working;
  least = std::min(least, base + c.need.all());
  if (device) least += least / (kSpare - 1) + 1;
  size_t needed = (least / 1000000 + 1) * 1000000;  // rounded up, so that what is said is enough
  fail(ErrorKind::resource, "the limit of " + describe_bytes(given) + " is too small for " + c.name + ": " +
                                std::to_string(needed / 1000000) + "MB are needed, " +
                                describe_bytes(c.need.working + (device ? 0 : c.beside)) + " of them to work in" +
                                (advice.empty() ? "" : " (" + advice + ")"));
}

}  // namespace kinora
