#include "measure.h"

#include <cstdio>
#include <nlohmann/json.hpp>

namespace kinora::cli {

Times time_runs(int repeats, int warm_up, const std::function<void()>& body) {
  for (int i = 0; i < warm_up; ++i) body();
  Times times;
  double before = processor_seconds();
  for (int i = 0; i < repeats; ++i) {
    auto start = std::chrono::steady_clock::now();
    body();
    times.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.seconds.begin(), times.seconds.end());
  times.processor = (processor_seconds() - before) / repeats;
  return times;
}

void print_profile(const std::string& name, const Executable& executable, const std::map<std::string, Tensor>& inputs) {
  struct Sum {
    double seconds = 0;
    int count = 0;
  };
  std::map<std::string, Sum> sums;
  double total = 0;
  const Graph& g = executable.graph();
  for (const Executable::StepTime& step : executable.profile(inputs)) {
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

void EvalTiming::report(const std::string& component, const Executable& executable,
                        const std::map<std::string, Tensor>& inputs, const Runtime& runtime) const {
  if (repeats < 1 && !by_op) return;
  Device* device = runtime.context.device.get();
  std::map<std::string, Tensor> placed = inputs;
  if (device) {
    for (auto& [name, tensor] : placed) tensor = device->to_device(tensor);
  }
  if (repeats > 0) {
    Times times = time_runs(repeats, 1, [&] {
      executable.run(placed, device ? Keep::on_device : Keep::on_host);
      if (device) device->wait();
    });
    nlohmann::json row{{"component", component},
                       {"device", describe(runtime)},
                       {"median_s", times.median()},
                       {"best_s", times.seconds[0]},
                       {"device_peak_mib", static_cast<double>(peak_device_memory(runtime)) / (1 << 20)},
                       {"attention", attention_of(executable)}};
    std::printf("%s\n", row.dump().c_str());
  }
  if (by_op) print_profile(component, executable, placed);
}

}  // namespace kinora::cli
