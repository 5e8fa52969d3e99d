#include "bench.h"

#include <cstdio>

namespace kinora::cli {
namespace {

// Seconds of each of `repeats` runs after a few to warm up, sorted; and of the processors, a run on average.
struct Times {
  std::vector<double> seconds;
  double processor;
};

template <class F>
Times time_runs(int repeats, int warm_up, F&& body) {
  for (int i = 0; i < warm_up; ++i) body();
  std::vector<double> seconds;
  double before = processor_seconds();
  for (int i = 0; i < repeats; ++i) {
    auto start = std::chrono::steady_clock::now();
    body();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return {seconds, (processor_seconds() - before) / repeats};
}

}  // namespace

double mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

void print_weights(const char* name, const Weights& weights) {
  std::map<std::string, size_t> by_type;
  for (const std::string& tensor : weights.names()) {
    by_type[std::string(dtype_name(weights.find(tensor)->dtype()))] += weights.find(tensor)->bytes();
  }
  std::string types;
  for (const auto& [type, bytes] : by_type) types += (types.empty() ? "" : ", ") + type;
  std::printf("  %-13s %6zu tensors  %9.1f MiB  %s\n", name, weights.size(), mib(weights.bytes()), types.c_str());
}

void Bench::row(const std::string& name, const std::function<void(Keep)>& body) {
  if (!wanted(name)) return;
  auto [seconds, processor] = time_runs(o_.repeats, device_ ? 3 : 1, [&] {
    body(device_ ? Keep::on_device : Keep::on_host);
    if (device_) device_->wait();
  });
  double device_peak = mib(peak_device_memory(runtime_));
  rows_.push_back({{"component", name},
                   {"median_s", seconds[seconds.size() / 2]},
                   {"best_s", seconds[0]},
                   {"processor_s", processor},
                   {"peak_mib", mib(peak_memory())},
                   {"device_peak_mib", device_peak}});
  if (o_.json) return;
  std::printf("%-14s median %9.4f s   best %9.4f s   processors %9.4f s   peak so far %8.1f MiB", name.c_str(),
              seconds[seconds.size() / 2], seconds[0], processor, mib(peak_memory()));
  if (device_) std::printf(", %9.1f MiB on the GPU", device_peak);
  std::printf("\n");
}

void Bench::profile(const std::string& name, const std::function<const Executable&()>& exe,
                    const std::map<std::string, Tensor>& inputs) const {
  if (!o_.by_op || !wanted(name)) return;
  struct Sum {
    double seconds = 0;
    int count = 0;
  };
  std::map<std::string, Sum> sums;
  double total = 0;
  const Graph& g = exe().graph();
  for (const Executable::StepTime& step : exe().profile(inputs)) {
    const Node& node = g.node(step.node);
    std::string key = std::string(node.op->name);
    for (NodeId id : node.inputs) key += " " + g.node(id).spec.shape.str();
    Sum& sum = sums[key + " -> " + node.spec.shape.str()];
    sum.seconds += step.seconds;
    ++sum.count;
    total += step.seconds;
  }
  std::vector<std::pair<std::string, Sum>> rows(sums.begin(), sums.end());
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::printf("%s: %.3f ms in %zu kinds of steps\n", name.c_str(), total * 1000, rows.size());
  for (const auto& [key, sum] : rows) {
    std::printf("  %9.3f ms  %4.1f %%  %4d x %9.2f us  %s\n", sum.seconds * 1000, 100 * sum.seconds / total, sum.count,
                sum.seconds * 1e6 / sum.count, key.c_str());
  }
}

}  // namespace kinora::cli
