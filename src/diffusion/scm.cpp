// The consistency sampler of Sana-Sprint in its trigonometric form (Lu & Song, arXiv:2410.11081). Timesteps are angles.
#include <cmath>

#include "diffusion/scheduler.h"

namespace kinora {
namespace {

class Scm : public Scheduler {
 public:
  void set_steps(int64_t steps) override {
    check_steps(steps);
    if (steps == 2) {
      timesteps_ = {kMaxTimestep, kIntermediateTimestep, 0};
      return;
    }
    timesteps_.clear();
    float stride = (0 - kMaxTimestep) / static_cast<float>(steps);
    for (int64_t i = 0; i <= steps; ++i) {  // torch.linspace counts the second half from its end
      bool first_half = i < (steps + 1) / 2;
      timesteps_.push_back(first_half ? kMaxTimestep + stride * static_cast<float>(i)
                                      : 0 - stride * static_cast<float>(steps - i));
    }
  }

  Tensor step(size_t i, const Tensor& output, const Tensor& x, const NoiseSource& noise) override {
    float s = timesteps_[i], t = timesteps_[i + 1];
    denoised_ = combine({{std::cos(s), &x}, {-std::sin(s), &output}});
    Tensor drawn = noise(x.shape());
    drawn = combine({{kSigmaData, &drawn}});
    return combine({{std::cos(t), &denoised_}, {std::sin(t), &drawn}});
  }

  Tensor add_noise(const Tensor& latents, const Tensor& noise, size_t i) const override {
    Tensor a = combine({{kSigmaData, &latents}}), b = combine({{kSigmaData, &noise}});
    return combine({{std::cos(timesteps_[i]), &a}, {std::sin(timesteps_[i]), &b}});
  }

  float noise_level(size_t i) const override {
    float s = std::sin(timesteps_[i]), c = std::cos(timesteps_[i]);
    return s / (s + c);
  }

  // The model's change of variables from the flow is part of the sums (Sana-Sprint, arXiv:2503.09641, section 3.1).
  StepCoefficients coefficients(size_t i, size_t) const override {
    double s = timesteps_[i], t = timesteps_[i + 1], tau = std::sin(s) / (std::cos(s) + std::sin(s));
    double norm = std::sqrt(tau * tau + (1 - tau) * (1 - tau)), input = norm / kSigmaData;
    double of_input = kSigmaData * (1 - 2 * tau) / norm, of_output = kSigmaData * (1 - 2 * tau + 2 * tau * tau) / norm;
    return {.input = static_cast<float>(input),
            .clean_x = static_cast<float>(std::cos(s) - std::sin(s) * of_input * input),
            .clean_output = static_cast<float>(-std::sin(s) * of_output),
            .next_clean = static_cast<float>(std::cos(t)),
            .next_noise = static_cast<float>(std::sin(t) * kSigmaData),
            .timestep = static_cast<float>(tau)};
  }

  void begin(size_t) override {}
  bool trigflow() const override { return true; }
  Tensor result(const Tensor&) const override { return denoised_; }
  std::string name() const override { return "scm"; }

 private:
  static constexpr float kMaxTimestep = 1.57080f;
  static constexpr float kIntermediateTimestep = 1.3f;
  Tensor denoised_;  // the last prediction of the clean latents
};

std::unique_ptr<Scheduler> make(double) { return std::make_unique<Scm>(); }

std::unique_ptr<Scheduler> read(const Config& json, double shift) {
  expect_text(json, "prediction_type", "trigflow", {"trigflow"});
  json.real("sigma_data", kSigmaData, kSigmaData, kSigmaData);
  return make(shift);
}

}  // namespace

const SchedulerDef kScm{"scm", "SCMScheduler", read, make};

}  // namespace kinora
