// What the graphs of attention are put together from: tensors, products, pointwise operations and reductions.
#pragma once

#include <memory>
#include <optional>

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

}  // namespace kinora::cuda::cudnn
