// The samplers against diffusers on a grid of settings: tests/golden/make_schedulers.py made the file.
#include "diffusion/scheduler.h"

#include <sstream>

#include "io/safetensors.h"
#include "support.h"

namespace kinora::test {
namespace {

Tensor model(const Tensor& x, float t) {
  Tensor y(x.shape(), DType::f32);
  for (int64_t i = 0; i < x.numel(); ++i) {
    float v = x.data<float>()[i];
    y.data<float>()[i] = 0.7f * std::sin(3 * v + t / 1000) - 0.2f * v;
  }
  return y;
}

std::unique_ptr<Scheduler> make(const std::string& kind, const std::string& variant, double shift) {
  if (kind == "scm") return std::make_unique<ScmScheduler>();
  if (kind == "euler") return make_flow_euler(shift);
  DpmSolverConfig c;
  c.flow_shift = shift;
  if (variant == "order1") c.order = 1;
  if (variant == "heun") c.heun = true;
  if (variant == "sigma_min" || variant == "euler_at_final") c.final_sigma_zero = false;
  if (variant == "euler_at_final") {
    c.euler_at_final = true;
    c.lower_order_final = false;
  }
  return make_dpm_solver(c);
}

TEST(Schedulers, EqualDiffusersOnTheWholeGrid) {
  SafetensorsFile file = SafetensorsFile::open(std::string(KINORA_SOURCE_DIR) + "/tests/golden/schedulers.safetensors");
  int settings = 0;
  for (const SafetensorsEntry& entry : file.header().entries) {
    if (!entry.name.ends_with("/timesteps")) continue;
    std::string prefix = entry.name.substr(0, entry.name.size() - 9), kind, variant, steps, shift;
    std::istringstream parts(prefix);
    std::getline(parts, kind, '/');
    std::getline(parts, variant, '/');
    std::getline(parts, steps, '/');
    std::getline(parts, shift, '/');
    auto scheduler = make(kind, variant, std::stod(shift));
    scheduler->set_steps(std::stoi(steps));
    Tensor times = Tensor::from({static_cast<int64_t>(scheduler->timesteps().size())}, scheduler->timesteps());
    expect_close(times, file.tensor(entry), DType::f32, 1, entry.name);

    Tensor x = file.tensor("start").clone(), samples = file.tensor(prefix + "samples");
    bool scm = kind == "scm";
    for (int64_t i = 0; scm && i < x.numel(); ++i) x.data<float>()[i] *= ScmScheduler::kSigmaData;
    for (size_t i = 0; i < static_cast<size_t>(std::stoi(steps)); ++i) {
      auto at = static_cast<int64_t>(i);
      NoiseSource noise = [&](const Shape&) {
        return file.tensor(prefix + "noise").rows(at, at + 1).reshaped(x.shape());
      };
      x = scheduler->step(i, model(x, scheduler->timesteps()[i]), x, noise);
      Tensor expected = samples.rows(at, at + 1);
      if (scm) {
        expected = expected.reshaped({2, x.numel()});
        expect_close(static_cast<ScmScheduler&>(*scheduler).denoised(), expected.rows(1, 2).reshaped(x.shape()),
                     DType::f32, 64, prefix);
        expected = expected.rows(0, 1);
      }
      // Rounding grows from step to step: the model's own slope is up to 2.3.
      expect_close(x, expected.reshaped(x.shape()), DType::f32, 64 * (at + 1), prefix + " step " + std::to_string(i));
    }
    ++settings;
  }
  EXPECT_EQ(settings, 9 * 4 * 6 + 4);
}

// The sums that run on a device are the same steps, to rounding.
TEST(Schedulers, CoefficientsGiveTheSameSteps) {
  auto check_steps = [](Scheduler& scheduler, int64_t steps, size_t first) {
    scheduler.set_steps(steps);
    scheduler.begin(first);
    Tensor x = random_tensor({2, 3, 4, 5}, 7), previous = Tensor::zeros(x.shape());
    for (size_t i = first; i < static_cast<size_t>(steps); ++i) {
      Tensor output = model(x, scheduler.timesteps()[i]), noise = random_tensor(x.shape(), 11 + i);
      StepCoefficients c = scheduler.coefficients(i, i - first);
      bool scm = scheduler.name() == "scm";
      Tensor next = Tensor::zeros(x.shape()), given = output.clone();
      for (int64_t k = 0; k < x.numel(); ++k) {
        float in = x.data<float>()[k], out = output.data<float>()[k];
        float clean = c.clean_x * in + c.clean_output * out;
        next.data<float>()[k] = c.next_x * in + c.next_clean * clean + c.next_previous * previous.data<float>()[k] +
                                c.next_noise * noise.data<float>()[k];
        previous.data<float>()[k] = clean;
        if (!scm) continue;  // the pipeline's change of variables comes before ScmScheduler::step
        float tau = c.timestep, norm = std::sqrt(tau * tau + (1 - tau) * (1 - tau));
        given.data<float>()[k] =
            ((1 - 2 * tau) * c.input * in + (1 - 2 * tau + 2 * tau * tau) * out) / norm * ScmScheduler::kSigmaData;
      }
      Tensor expected = scheduler.step(i, given, x, [&](const Shape&) { return noise; });
      expect_close(next, expected, DType::f32, 256, scheduler.name() + " step " + std::to_string(i));
      x = expected;
    }
  };
  for (int64_t steps : {1, 2, 5, 20}) {
    for (const char* variant : {"", "order1", "heun", "sigma_min", "euler_at_final"}) {
      check_steps(*make("dpm", variant, 3), steps, 0);
      if (steps > 2) check_steps(*make("dpm", variant, 3), steps, 2);
    }
    check_steps(*make("euler", "", 3), steps, 0);
    check_steps(*make("scm", "", 1), steps, 0);
  }
}

TEST(Schedulers, RefuseImpossibleSteps) {
  for (int64_t steps : {int64_t{0}, int64_t{-3}, int64_t{1001}}) {
    EXPECT_THROW(make_flow_euler(3)->set_steps(steps), Error);
    EXPECT_THROW(make_dpm_solver({})->set_steps(steps), Error);
    EXPECT_THROW(ScmScheduler().set_steps(steps), Error);
  }
}

}  // namespace
}  // namespace kinora::test
