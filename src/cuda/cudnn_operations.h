// What the graphs of attention are put together from: tensors, products, pointwise operations and reductions.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "core/log.h"
#include "cuda/cudnn_descriptor.h"

namespace kinora::cuda::cudnn {

// The operations of one graph, and all descriptors that they are made of, for as long as this object lives.
class Operations {
 public:
  // Refused operations give a refused graph.
  Descriptor finish(cudnnHandle_t handle) const;

 protected:
  // Of four axes, the last two those of a product's matrices. A product's second matrix may be one stored transposed.
  const Descriptor& tensor(int64_t id, cudnnDataType_t type, const Ints& extents, const Ints& strides,
                           int64_t alignment = 16);
  // One float32, on the device, or on the host and given with each run.
  const Descriptor& number(int64_t id, bool on_host = false);
  // Passed from one operation to the next and never stored.
  const Descriptor& unstored(const Ints& extents, cudnnDataType_t type = CUDNN_DATA_FLOAT);

  void product(const Descriptor& a, const Descriptor& b, const Descriptor& c);
  // y, of x and, where there is one, b. All arithmetic is float32.
  const Descriptor& pointwise(cudnnPointwiseMode_t mode, const Descriptor& x, const Descriptor* b, const Descriptor& y);
  const Descriptor& reduction(cudnnReduceTensorOp_t mode, const Descriptor& x, const Descriptor& y);
  void add(Descriptor operation) { operations_.push_back(std::move(operation)); }

 private:
  const Descriptor& keep(Descriptor d) { return *kept_.emplace_back(std::make_unique<Descriptor>(std::move(d))); }
  const Descriptor& finished(Descriptor d, int64_t id, cudnnDataType_t type, const Ints& extents, const Ints& strides,
                             int64_t alignment);

  int64_t unstored_ = 0;  // how many there are
  std::vector<std::unique_ptr<Descriptor>> kept_;
  std::vector<Descriptor> operations_;
};

struct EnginePlan {
  Descriptor plan;
  size_t workspace;  // bytes
};

// Of one engine configuration; nullopt when it is refused, when its sums depend on timing, or when it wants too much
// memory.
std::optional<EnginePlan> steady_plan(const Descriptor& config, cudnnHandle_t handle);

// What `find` gives for attention of this kind on the current device, looked for once and kept for the whole program;
// null when it finds none, or cuDNN is absent.
template <class Plan, class Problem, class Find>
std::shared_ptr<const Plan> kept_plan(const Problem& problem, const Find& find, const std::string& what) {
  // Never destroyed, as the handles.
  static auto& plans = *new std::map<std::pair<int, Problem>, std::shared_ptr<const Plan>>;
  int device = 0;
  check(cudaGetDevice(&device));
  std::lock_guard guard(lock());
  auto [entry, fresh] = plans.try_emplace({device, problem});
  if (!fresh) return entry->second;
  try {
    entry->second = find(problem, handle_of(device));
  } catch (const Error& error) {
    log(LogLevel::debug, "attention goes without " + what + ": " + error.what());
  }
  return entry->second;
}

}  // namespace kinora::cuda::cudnn
