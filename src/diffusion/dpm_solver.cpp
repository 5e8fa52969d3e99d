// DPM-Solver++ (Lu et al., arXiv:2211.01095), multistep, on flow matching's noise levels.
#include <cmath>

#include "diffusion/scheduler.h"

namespace kinora {
namespace {

struct DpmSolverConfig {
  double flow_shift = 1;
  int64_t order = 2;  // 1 or 2
  bool heun = false;  // else midpoint
  bool lower_order_final = true, euler_at_final = false;
  bool final_sigma_zero = true;  // else the smallest sigma of the variance-preserving schedule
};

class DpmSolver : public Scheduler {
 public:
  explicit DpmSolver(const DpmSolverConfig& config) : config_(config) {}

  void set_steps(int64_t steps) override {
    check_steps(steps);
    sigmas_.clear();
    timesteps_.clear();
    auto n = static_cast<size_t>(steps);
    for (size_t i = n; i > 0; --i) {  // highest noise first
      double alpha = 1 + static_cast<double>(i) * ((1.0 / kTrainSteps - 1) / static_cast<double>(n));
      if (i == n) alpha = 1.0 / kTrainSteps;
      double sigma = 1 - alpha;
      sigma = config_.flow_shift * sigma / (1 + (config_.flow_shift - 1) * sigma);
      sigmas_.push_back(static_cast<float>(sigma));
      timesteps_.push_back(static_cast<float>(static_cast<int64_t>(sigma * kTrainSteps)));
    }
    sigmas_.push_back(config_.final_sigma_zero ? 0.0f : smallest_vp_sigma());
    begin(0);
  }

  void begin(size_t) override {
    previous_ = Tensor();
    taken_ = 0;
  }

  Tensor step(size_t i, const Tensor& output, const Tensor& x, const NoiseSource&) override {
    Tensor clean = combine({{1.0f, &x}, {-sigmas_[i], &output}});
    Tensor next = low_order(i, taken_) ? first_order(i, clean, x) : second_order(i, clean, x);
    previous_ = clean;
    ++taken_;
    return next;
  }

  Tensor add_noise(const Tensor& latents, const Tensor& noise, size_t i) const override {
    return combine({{1 - sigmas_[i], &latents}, {sigmas_[i], &noise}});
  }
  float noise_level(size_t i) const override { return sigmas_[i]; }
  StepCoefficients coefficients(size_t i, size_t taken) const override {
    float h = lambda(sigmas_[i + 1]) - lambda(sigmas_[i]), shrink = decay(sigmas_[i + 1], h);
    StepCoefficients c{.clean_x = 1,
                       .clean_output = -sigmas_[i],
                       .next_x = sigmas_[i + 1] / sigmas_[i],
                       .next_clean = -shrink,
                       .timestep = timesteps_[i]};
    if (low_order(i, taken)) return c;
    float change = change_factor(i, h) / ((lambda(sigmas_[i]) - lambda(sigmas_[i - 1])) / h);
    c.next_clean += change;
    c.next_previous = -change;
    return c;
  }
  std::string name() const override { return "dpm++"; }

 private:
  static constexpr double kTrainSteps = 1000;

  bool low_order(size_t i, size_t taken) const {
    size_t n = timesteps_.size();
    bool last_low =
        i + 1 == n && (config_.euler_at_final || (config_.lower_order_final && n < 15) || config_.final_sigma_zero);
    return config_.order == 1 || taken < 1 || last_low;
  }

  // What the change of the clean prediction over the last step counts in a second-order step.
  float change_factor(size_t i, float h) const {
    return config_.heun ? (1 - sigmas_[i + 1]) * ((std::exp(-h) - 1.0f) / h + 1.0f) : -0.5f * decay(sigmas_[i + 1], h);
  }

  // sqrt((1 - ᾱ₀)/ᾱ₀) of the linear beta schedule that diffusers' class falls back to, with ᾱ₀ rounded as there.
  static float smallest_vp_sigma() {
    float kept = 1.0f - 1e-4f;
    return std::sqrt((1.0f - kept) / kept);
  }

  static float lambda(float sigma) { return std::log(1 - sigma) - std::log(sigma); }

  // α'(e^{-h} - 1): minus α' where sigma' is zero and h infinite.
  float decay(float sigma_next, float h) const { return (1 - sigma_next) * (std::exp(-h) - 1.0f); }

  Tensor first_order(size_t i, const Tensor& clean, const Tensor& x) const {
    float h = lambda(sigmas_[i + 1]) - lambda(sigmas_[i]);
    return combine({{sigmas_[i + 1] / sigmas_[i], &x}, {-decay(sigmas_[i + 1], h), &clean}});
  }

  Tensor second_order(size_t i, const Tensor& clean, const Tensor& x) const {
    float h = lambda(sigmas_[i + 1]) - lambda(sigmas_[i]), before = lambda(sigmas_[i]) - lambda(sigmas_[i - 1]);
    float r = before / h, shrink = decay(sigmas_[i + 1], h);
    Tensor change = combine({{1.0f, &clean}, {-1.0f, &previous_}});
    change = combine({{1.0f / r, &change}});
    return combine({{sigmas_[i + 1] / sigmas_[i], &x}, {-shrink, &clean}, {change_factor(i, h), &change}});
  }

  DpmSolverConfig config_;
  std::vector<float> sigmas_;
  Tensor previous_;  // the clean prediction of the step before
  size_t taken_ = 0;
};

DpmSolverConfig read_dpm_solver(const Config& json, double shift) {
  expect_text(json, "algorithm_type", "dpmsolver++", {"dpmsolver++"});
  expect_text(json, "prediction_type", "epsilon", {"flow_prediction"});
  expect_text(json, "solver_type", "midpoint", {"midpoint", "heun", "logrho", "bh1", "bh2"});
  expect_text(json, "final_sigmas_type", "zero", {"zero", "sigma_min"});
  if (!json.boolean("use_flow_sigmas", false)) {
    fail(ErrorKind::model, json.name() + ": only use_flow_sigmas true is supported");
  }
  expect_off(json, {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "thresholding",
                    "rescale_betas_zero_snr"});
  DpmSolverConfig c{.flow_shift = shift};
  c.order = json.integer("solver_order", 1, 2, 2);
  c.heun = json.text("solver_type", "midpoint") == "heun";  // diffusers reads the other names as midpoint
  c.lower_order_final = json.boolean("lower_order_final", true);
  c.euler_at_final = json.boolean("euler_at_final", false);
  c.final_sigma_zero = json.text("final_sigmas_type", "zero") == "zero";
  if (!c.final_sigma_zero) {  // the last sigma comes from the betas
    expect_text(json, "beta_schedule", "linear", {"linear"});
    json.real("beta_start", 1e-4, 1e-4, 1e-4);
  }
  return c;
}

std::unique_ptr<Scheduler> read(const Config& json, double shift) {
  return std::make_unique<DpmSolver>(read_dpm_solver(json, shift));
}
std::unique_ptr<Scheduler> make(double shift) {
  return std::make_unique<DpmSolver>(DpmSolverConfig{.flow_shift = shift});
}

}  // namespace

const SchedulerDef kDpmSolver{"dpm++", "DPMSolverMultistepScheduler", read, make};

}  // namespace kinora
