#include "diffusion/scheduler.h"

#include <algorithm>
#include <cmath>

namespace kinora {
namespace {

void check_steps(int64_t steps) {
  if (steps < 1 || steps > 1000) {
    fail(ErrorKind::usage, "steps must be from 1 to 1000, not " + std::to_string(steps));
  }
}

// Σ factor·tensor, each product and sum rounded to float32 in this order.
Tensor combine(std::initializer_list<std::pair<float, const Tensor*>> terms) {
  Tensor result(terms.begin()->second->shape(), DType::f32);
  auto count = static_cast<size_t>(result.numel());
  bool first = true;
  for (const auto& [factor, tensor] : terms) {
    const float* x = tensor->data<float>();
    float* y = result.data<float>();
    for (size_t i = 0; i < count; ++i) y[i] = first ? factor * x[i] : y[i] + factor * x[i];
    first = false;
  }
  return result;
}

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

}  // namespace

void ScmScheduler::set_steps(int64_t steps) {
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

Tensor ScmScheduler::step(size_t i, const Tensor& output, const Tensor& x, const NoiseSource& noise) {
  float s = timesteps_[i], t = timesteps_[i + 1];
  denoised_ = combine({{std::cos(s), &x}, {-std::sin(s), &output}});
  Tensor drawn = noise(x.shape());
  drawn = combine({{kSigmaData, &drawn}});
  return combine({{std::cos(t), &denoised_}, {std::sin(t), &drawn}});
}

Tensor ScmScheduler::add_noise(const Tensor& latents, const Tensor& noise, size_t i) const {
  Tensor a = combine({{kSigmaData, &latents}}), b = combine({{kSigmaData, &noise}});
  return combine({{std::cos(timesteps_[i]), &a}, {std::sin(timesteps_[i]), &b}});
}

float ScmScheduler::noise_level(size_t i) const {
  float s = std::sin(timesteps_[i]), c = std::cos(timesteps_[i]);
  return s / (s + c);
}

// The model's change of variables from the flow is part of the sums (Sana-Sprint, arXiv:2503.09641, section 3.1).
StepCoefficients ScmScheduler::coefficients(size_t i, size_t) const {
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

std::unique_ptr<Scheduler> make_dpm_solver(const DpmSolverConfig& config) {
  return std::make_unique<DpmSolver>(config);
}
std::unique_ptr<Scheduler> make_flow_euler(double shift) { return std::make_unique<FlowEuler>(shift); }

namespace {

// What would change the samples and is not done here is refused by name.
void expect_off(const Config& json, std::initializer_list<const char*> switches) {
  for (const char* key : switches) {
    if (json.boolean(key, false)) fail(ErrorKind::model, json.name() + ": \"" + key + "\" true is not supported");
  }
}

void expect_text(const Config& json, const std::string& key, const std::string& fallback,
                 std::initializer_list<const char*> known) {
  std::string given = json.text(key, fallback), list;
  for (const char* name : known) {
    if (given == name) return;
    list += (list.empty() ? "" : ", ") + std::string(name);
  }
  fail(ErrorKind::model, json.name() + ": " + key + " \"" + given + "\" is not supported (" + list + ")");
}

DpmSolverConfig read_dpm_solver(const Config& json) {
  expect_text(json, "algorithm_type", "dpmsolver++", {"dpmsolver++"});
  expect_text(json, "prediction_type", "epsilon", {"flow_prediction"});
  expect_text(json, "solver_type", "midpoint", {"midpoint", "heun", "logrho", "bh1", "bh2"});
  expect_text(json, "final_sigmas_type", "zero", {"zero", "sigma_min"});
  if (!json.boolean("use_flow_sigmas", false)) {
    fail(ErrorKind::model, json.name() + ": only use_flow_sigmas true is supported");
  }
  expect_off(json, {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "thresholding",
                    "rescale_betas_zero_snr"});
  DpmSolverConfig c;
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

}  // namespace

std::unique_ptr<Scheduler> make_scheduler(const Config& json, const std::string& override_name) {
  std::string class_name = json.text("_class_name", "");
  double shift = json.real("flow_shift", 1e-3, 1e3, json.real("shift", 1e-3, 1e3, 1));
  if (override_name == "euler") return make_flow_euler(shift);
  if (override_name == "scm") return std::make_unique<ScmScheduler>();
  if (!override_name.empty() && override_name != "dpm++") {
    fail(ErrorKind::usage, "unknown scheduler '" + override_name + "' (known: dpm++, euler, scm)");
  }
  json.integer("num_train_timesteps", 1000, 1000, 1000);
  if (class_name == "DPMSolverMultistepScheduler") {
    DpmSolverConfig c = read_dpm_solver(json);
    c.flow_shift = shift;
    return make_dpm_solver(c);
  }
  if (override_name == "dpm++") {
    DpmSolverConfig c;
    c.flow_shift = shift;
    return make_dpm_solver(c);
  }
  if (class_name == "FlowMatchEulerDiscreteScheduler") {
    expect_off(json, {"use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
                      "invert_sigmas", "stochastic_sampling"});
    if (json.has("shift_terminal")) fail(ErrorKind::model, json.name() + ": \"shift_terminal\" is not supported");
    return make_flow_euler(shift);
  }
  if (class_name == "SCMScheduler") {
    expect_text(json, "prediction_type", "trigflow", {"trigflow"});
    json.real("sigma_data", 0.5, 0.5, 0.5);
    return std::make_unique<ScmScheduler>();
  }
  fail(ErrorKind::model, json.name() + ": scheduler \"" + class_name +
                             "\" is not supported (DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, "
                             "SCMScheduler)");
}

}  // namespace kinora
