// The Euler method on the flow (Esser et al., arXiv:2403.03206).
#include "diffusion/scheduler.h"

namespace kinora {
namespace {

class FlowEuler : public Scheduler {
 public:
  explicit FlowEuler(double shift) : shift_(shift) {}

  void set_steps(int64_t steps) override {
    check_steps(steps);
    // The limits are shifted once by the constructor of diffusers' class, and every level once more here.
    auto limit = [&](float sigma) {
      auto s = static_cast<float>(shift_);
      return static_cast<double>(s * sigma / (1 + (s - 1) * sigma)) * kTrainSteps;
    };
    double high = limit(1.0f), low = limit(1.0f / kTrainSteps);
    sigmas_.clear();
    timesteps_.clear();
    for (int64_t i = 0; i < steps; ++i) {
      double t = steps == 1       ? high
                 : i == steps - 1 ? low
                                  : high + static_cast<double>(i) * ((low - high) / static_cast<double>(steps - 1));
      double sigma = t / kTrainSteps;
      sigma = shift_ * sigma / (1 + (shift_ - 1) * sigma);
      sigmas_.push_back(static_cast<float>(sigma));
      timesteps_.push_back(sigmas_.back() * kTrainSteps);
    }
    sigmas_.push_back(0);
  }

  void begin(size_t) override {}
  Tensor step(size_t i, const Tensor& output, const Tensor& x, const NoiseSource&) override {
    return combine({{1.0f, &x}, {sigmas_[i + 1] - sigmas_[i], &output}});
  }
  Tensor add_noise(const Tensor& latents, const Tensor& noise, size_t i) const override {
    return combine({{1 - sigmas_[i], &latents}, {sigmas_[i], &noise}});
  }
  float noise_level(size_t i) const override { return sigmas_[i]; }
  StepCoefficients coefficients(size_t i, size_t) const override {
    float kept = sigmas_[i + 1] / sigmas_[i];
    return {
        .clean_x = 1, .clean_output = -sigmas_[i], .next_x = kept, .next_clean = 1 - kept, .timestep = timesteps_[i]};
  }
  std::string name() const override { return "euler"; }

 private:
  static constexpr float kTrainSteps = 1000;
  double shift_;
  std::vector<float> sigmas_;
};

std::unique_ptr<Scheduler> make(double shift) { return std::make_unique<FlowEuler>(shift); }

std::unique_ptr<Scheduler> read(const Config& json, double shift) {
  expect_off(json, {"use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
                    "invert_sigmas", "stochastic_sampling"});
  if (json.has("shift_terminal")) fail(ErrorKind::model, json.name() + ": \"shift_terminal\" is not supported");
  return make(shift);
}

}  // namespace

const SchedulerDef kFlowEuler{"euler", "FlowMatchEulerDiscreteScheduler", read, make};

}  // namespace kinora
