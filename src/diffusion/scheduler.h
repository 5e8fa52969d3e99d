// Samplers: which noise levels to visit, and how to go from one to the next. State and arithmetic are float32, as in
// diffusers, whose classes of the same names they equal.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "io/config.h"

namespace kinora {

// Draws standard normal noise of a shape; the stream belongs to the caller.
using NoiseSource = std::function<Tensor(const Shape&)>;

// One step as sums, for samplers whose arithmetic runs where the model does:
//   model input = input · x
//   clean       = clean_x · x + clean_output · output
//   next        = next_x · x + next_clean · clean + next_previous · (clean of the step before) + next_noise · noise
struct StepCoefficients {
  float input = 1, clean_x = 0, clean_output = 0, next_x = 0, next_clean = 0, next_previous = 0, next_noise = 0;
  float timestep = 0;  // what the model is given
};

class Scheduler {
 public:
  virtual ~Scheduler() = default;
  // Prepares `steps` steps, 1 to 1000; throws Error(usage) outside.
  virtual void set_steps(int64_t steps) = 0;
  // What the model is given at each step.
  const std::vector<float>& timesteps() const { return timesteps_; }
  // Begins at step `first`: for image-to-image.
  virtual void begin(size_t first) = 0;
  // x at step i -> x at step i + 1, given the model's output. `noise` is called by stochastic samplers alone.
  virtual Tensor step(size_t i, const Tensor& output, const Tensor& x, const NoiseSource& noise) = 0;
  // Clean latents with the noise level of step i, for image-to-image.
  virtual Tensor add_noise(const Tensor& latents, const Tensor& noise, size_t i) const = 0;
  // How much of step i's latents is noise, 1 down to 0.
  virtual float noise_level(size_t i) const = 0;
  // Step i, when `taken` steps went before it since begin().
  virtual StepCoefficients coefficients(size_t i, size_t taken) const = 0;
  virtual std::string name() const = 0;

 protected:
  std::vector<float> timesteps_;
};

// DPM-Solver++ (Lu et al., arXiv:2211.01095), multistep, on flow matching's noise levels.
struct DpmSolverConfig {
  double flow_shift = 1;
  int64_t order = 2;  // 1 or 2
  bool heun = false;  // else midpoint
  bool lower_order_final = true, euler_at_final = false;
  bool final_sigma_zero = true;  // else the smallest sigma of the variance-preserving schedule
};
std::unique_ptr<Scheduler> make_dpm_solver(const DpmSolverConfig& config);

// The Euler method on the flow (Esser et al., arXiv:2403.03206).
std::unique_ptr<Scheduler> make_flow_euler(double shift);

// The consistency sampler of Sana-Sprint in its trigonometric form (Lu & Song, arXiv:2410.11081).
// Latents are kept multiplied by sigma_data; timesteps() are angles, the last one (0) included.
class ScmScheduler : public Scheduler {
 public:
  static constexpr float kSigmaData = 0.5f;
  static constexpr float kMaxTimestep = 1.57080f;
  static constexpr float kIntermediateTimestep = 1.3f;

  void set_steps(int64_t steps) override;
  void begin(size_t) override {}
  Tensor step(size_t i, const Tensor& output, const Tensor& x, const NoiseSource& noise) override;
  Tensor add_noise(const Tensor& latents, const Tensor& noise, size_t i) const override;
  float noise_level(size_t i) const override;
  StepCoefficients coefficients(size_t i, size_t taken) const override;
  std::string name() const override { return "scm"; }
  const Tensor& denoised() const { return denoised_; }  // the last prediction of the clean latents, times sigma_data

 private:
  Tensor denoised_;
};

// From scheduler_config.json by its "_class_name"; throws Error(model) for one that Sana does not use.
// `override_name` ("dpm++", "euler", "scm", "") takes another with the same shift.
std::unique_ptr<Scheduler> make_scheduler(const Config& json, const std::string& override_name = "");

}  // namespace kinora
