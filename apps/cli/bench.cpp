#include "bench.h"

#include <cstdio>

#include "graph/profile.h"
#include "measure.h"
#include "nn/quantize.h"

namespace kinora::cli {

double mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

void print_weights(const char* name, const Weights& weights) {
  std::map<std::string, size_t> by_type;
  for (const std::string& tensor : weights.names()) {
    by_type[std::string(dtype_name(weights.find(tensor)->dtype()))] += weights.find(tensor)->bytes();
  }
  std::string types;
  for (const auto& [type, bytes] : by_type) types += (types.empty() ? "" : ", ") + type;
  std::string quantized = describe_quantization(weights);
  if (!quantized.empty()) types += "; " + quantized;
  std::printf("  %-13s %6zu tensors  %9.1f MiB  %s\n", name, weights.size(), mib(weights.bytes()), types.c_str());
}

void Bench::row(const std::string& name, const std::function<void(Keep)>& body) {
  if (!wanted(name)) return;
  Times times = time_runs(o_.repeats, device_ ? 3 : 1, [&] {
    body(device_ ? Keep::on_device : Keep::on_host);
    if (device_) device_->wait();
  });
  double device_peak = mib(peak_device_memory(runtime_));
  rows_.push_back({{"component", name},
                   {"median_s", times.median()},
                   {"best_s", times.seconds[0]},
                   {"processor_s", times.processor},
                   {"peak_mib", mib(peak_memory())},
                   {"device_peak_mib", device_peak},
                   {"arena_mib", mib(runtime_.context.arena->size())}});
  if (o_.json) return;
  std::printf("%-14s median %9.4f s   best %9.4f s   processors %9.4f s   peak so far %8.1f MiB", name.c_str(),
              times.median(), times.seconds[0], times.processor, mib(peak_memory()));
  if (device_) std::printf(", %9.1f MiB on the GPU", device_peak);
  std::printf("\n");
}

void Bench::profile(const std::string& name, const std::function<const Executable&()>& exe,
                    const std::map<std::string, Tensor>& inputs) const {
  if (o_.by_op && wanted(name)) std::fputs(profile_table(name, exe(), inputs).c_str(), stdout);
}

}  // namespace kinora::cli
