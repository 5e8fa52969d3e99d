// Timing components: shared by `kinora bench` of pictures and of films.
#pragma once

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli.h"

namespace kinora::cli {

struct BenchOptions {
  std::string model, component;
  LoadOptions load;
  int repeats = 5;
  int64_t size = 0, batch = 0, steps = 0;
  bool json = false, by_op = false, yes = false;
};

class Bench {
 public:
  Bench(const BenchOptions& options, const Runtime& runtime)
      : o_(options), runtime_(runtime), device_(runtime.context.device.get()) {}

  // Times `body` unless another component alone was asked for. Work that stays on the device is timed there: inputs
  // uploaded before, nothing copied back, the end waited for.
  void row(const std::string& name, const std::function<void(Keep)>& body);
  bool wanted(const std::string& name) const { return o_.component.empty() || name == o_.component; }
  // Where the time of one run goes, by op and shape.
  void profile(const std::string& name, const std::function<const Executable&()>& exe,
               const std::map<std::string, Tensor>& inputs) const;

  Tensor placed(const Tensor& host) const { return device_ ? device_->to_device(host) : host; }
  Tensor filled(const Shape& shape, float value) const {
    return placed(Tensor::from(shape, std::vector<float>(static_cast<size_t>(shape.numel()), value)));
  }
  const nlohmann::json& rows() const { return rows_; }

 private:
  const BenchOptions& o_;
  Runtime runtime_;
  Device* device_;
  nlohmann::json rows_ = nlohmann::json::array();
};

double mib(size_t bytes);
void print_weights(const char* name, const Weights& weights);

// The same commands for a folder of Open-Sora's files.
bool is_film_folder(const std::string& folder);
int inspect_film(const std::string& folder, const std::string& graph, const LoadOptions& options);
int bench_film(const std::string& folder, const BenchOptions& options);

}  // namespace kinora::cli
