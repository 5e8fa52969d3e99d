// A denoising loop whose every step, model, guidance and sampler together, is one recorded graph on a device: the host
// enqueues all steps and waits only for what it shows.
#pragma once

#include <functional>
#include <vector>

#include "diffusion/components.h"
#include "diffusion/scheduler.h"

namespace kinora {

struct DeviceLoop {
  Tensor latents;           // [batch, h, w, C] f32, as Scheduler::step takes them
  Tensor caption, lengths;  // of all runs, as DenoiseInputs: with guidance, the negative prompt's rows first
  float guidance = 1;       // classifier-free, or what is embedded
  bool guided = false;      // two runs per step
  std::vector<StepCoefficients> steps;
  NoiseSource noise;  // drawn once a step when some step uses it
  // After each step is done, with its latents and clean prediction, on the device; may be empty.
  std::function<void(size_t done, const Tensor& latents, const Tensor& clean)> on_step;
};

struct LoopResult {
  Tensor latents, clean;  // on the device
};

class DeviceSampler {
 public:
  explicit DeviceSampler(Denoiser& denoiser) : denoiser_(denoiser) {}
  LoopResult run(const DeviceLoop& loop);
  void close() {
    befores_.clear();
    steps_.clear();
  }

 private:
  Denoiser& denoiser_;
  ExecutableCache befores_, steps_;  // what all steps share, run once; and a step
};

}  // namespace kinora
