// Where quantize_model gets the moments of layers' inputs from: a calibration at work (calibrate.h), or a file of what
// one has found, from which a model is quantized to other formats without looking again.
//
// The file is safetensors. A tensor f32 [k, k], or [k] for the diagonal alone, is the mean of x·xᵀ of an input, under
// the name of the first weight that reads it, "component/file/weight". The metadata says for each weight that was
// looked for, under such a name, which tensor is its; an empty text when nothing reads it.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/calibrated.h"
#include "io/safetensors.h"

namespace kinora {

// A part of a model whose weights can be quantized: <folder>/<base>.safetensors or its shards.
struct QuantizablePart {
  std::string component;  // as QuantizationRule names it
  std::string folder, base;
};

class Statistics {
 public:
  virtual ~Statistics() = default;
  // Which weights ("….weight") of a part will be asked for, in this order.
  virtual void begin(const QuantizablePart& part, std::vector<std::string> weights) = 0;
  // The moments of a weight's inputs; null when no product reads it. Throws Error(model) naming the weight where they
  // are not finite.
  virtual std::shared_ptr<const InputMoments> of(const std::string& weight) = 0;
};

class SavedStatistics : public Statistics {
 public:
  // Throws Error(io), and Error(input) for a file that holds no statistics. `pool` null: on the calling thread.
  explicit SavedStatistics(const std::string& file, ThreadPool* pool = nullptr);
  void begin(const QuantizablePart& part, std::vector<std::string> weights) override;
  // Throws Error(input) too, for a weight that was not looked for.
  std::shared_ptr<const InputMoments> of(const std::string& weight) override;

  // How a file names a part's weight.
  static std::string name(const QuantizablePart& part, const std::string& weight);
  // Metadata that all files have.
  static std::map<std::string, std::string> mark();

 private:
  SafetensorsFile file_;
  ThreadPool* pool_;
  QuantizablePart part_;
  size_t held_ = 0;                                                   // bytes of these
  std::map<std::string, std::shared_ptr<const InputMoments>> known_;  // by tensor
};

// InputMoments with an error that says whose they are.
std::shared_ptr<const InputMoments> moments_of_layer(Tensor moments, ThreadPool* pool, const std::string& component,
                                                     const std::string& weight);

}  // namespace kinora
