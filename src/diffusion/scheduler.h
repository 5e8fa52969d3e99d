// Samplers: which noise levels to visit, and how to go from one to the next. State and arithmetic are float32, as in
// diffusers, whose classes of the same names they equal.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
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

// TrigFlow models hold latents multiplied by this, the standard deviation of their data.
constexpr float kSigmaData = 0.5f;

// Tensors are [..] f32 on the host, all of one shape.
class Scheduler {
 public:
  virtual ~Scheduler() = default;
  // Prepares `steps` steps, 1 to 1000; throws Error(usage) outside.
  virtual void set_steps(int64_t steps) = 0;
  size_t steps() const { return timesteps_.size() - (trigflow() ? 1 : 0); }
  // What the model is given at each step: of a flow 1000·sigma, of trigflow an angle, and behind the last step's the 0
  // that it ends at.
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
  // Whether x and the output are those of TrigFlow (Lu & Song, arXiv:2410.11081), x multiplied by kSigmaData, and not
  // of a flow.
  virtual bool trigflow() const { return false; }
  // The latents to show or decode after a step: the x it gave, or what the sampler takes them to be in the end.
  virtual Tensor result(const Tensor& x) const { return x; }
  virtual std::string name() const = 0;

 protected:
  std::vector<float> timesteps_;
};

// A sampler as the table has it, see docs/add-a-scheduler.md.
struct SchedulerDef {
  std::string_view name;        // as --scheduler takes it
  std::string_view class_name;  // of diffusers, as scheduler_config.json has it
  // From a configuration of that class; throws Error(model) for what would change the samples and is not done here.
  std::unique_ptr<Scheduler> (*read)(const Config& json, double shift);
  // With its defaults, where the configuration is of another class.
  std::unique_ptr<Scheduler> (*make)(double shift);
};
extern const SchedulerDef kDpmSolver, kFlowEuler, kScm;
std::span<const SchedulerDef* const> scheduler_table();

// The sampler of scheduler_config.json by its "_class_name", or the one called `name` with the same shift of noise
// levels. Throws Error(model) for a class or an option that is not supported, Error(usage) for an unknown name.
std::unique_ptr<Scheduler> make_scheduler(const Config& json, const std::string& name = "");

// What samplers are made of.
void check_steps(int64_t steps);  // as set_steps
// Σ factor·tensor, each product and sum rounded to float32 in this order.
Tensor combine(std::initializer_list<std::pair<float, const Tensor*>> terms);
// Throw Error(model) unless the switches are false or absent; unless the text is one of those known.
void expect_off(const Config& json, std::initializer_list<const char*> switches);
void expect_text(const Config& json, const std::string& key, const std::string& fallback,
                 std::initializer_list<const char*> known);

}  // namespace kinora
