// A model folder with its text encoders and transformer quantized, written from one that is not.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "diffusion/calibrate.h"

namespace kinora {

// What `path` holds: a safetensors file of an MMDiT; a folder of a Sana pipeline, of Open-Sora's files, or of a text
// encoder by itself. Throws Error(io) when there is nothing.
std::vector<QuantizablePart> quantizable_parts(const std::string& path);

struct LayerReport {
  std::string component, layer;
  Shape shape;
  QuantFormat format;
  double error;  // relative_error
  // With calibration, of the layer's products: as they are now, and as they would be without.
  std::optional<double> product_error, product_error_before;
};

struct PartReport {
  std::string component, file;
  size_t layers = 0, before = 0, after = 0;  // bytes of all its tensors
};

struct QuantizeModelOptions {
  std::string model, output, variant;
  Quantization quantization;
  const std::atomic<bool>* stop = nullptr;  // when it becomes true: Error(cancelled), and nothing is left
  // Without either, weights are rounded by themselves.
  Calibration* calibration = nullptr;  // of the same model, not drawn yet
  std::string save_statistics;         // where calibration's are written before they are used; empty: nowhere
  Statistics* statistics = nullptr;    // of a calibration that was saved, in place of another
  std::function<void(const LayerReport&)> on_layer;
  std::function<void(const PartReport&)> on_part;
};

// Writes the folder `output`, which must not exist: quantized weights one tensor at a time, so that the memory needed
// is that of the largest (and what Calibration says), and copies of all other files. It has that name only when it is
// complete. Throws Error(usage) for a model that is quantized already, Error(io), and Error(model) naming a weight that
// cannot be quantized.
void quantize_model(const QuantizeModelOptions& options, ThreadPool& pool);

}  // namespace kinora
