#include "measure.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "graph/profile.h"

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
  if (by_op) std::fputs(profile_table(component, executable, placed).c_str(), stdout);
}

}  // namespace kinora::cli
