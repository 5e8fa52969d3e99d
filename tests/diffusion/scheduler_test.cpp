// The samplers against diffusers on a grid of settings: tests/golden/make_schedulers.py made the file.
#include "diffusion/scheduler.h"

#include <map>
#include <sstream>

#include "io/safetensors.h"
#include "io/settings.h"
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
  if (kind == "scm") return kScm.make(shift);
  if (kind == "euler") return kFlowEuler.make(shift);
  std::map<std::string, std::string> options{
      {"default", ""},
      {"order1", R"(, "solver_order": 1)"},
      {"heun", R"(, "solver_type": "heun")"},
      {"sigma_min", R"(, "final_sigmas_type": "sigma_min")"},
      {"euler_at_final", R"(, "final_sigmas_type": "sigma_min", "lower_order_final": false, "euler_at_final": true)"},
      {"second_to_the_end", R"(, "final_sigmas_type": "sigma_min", "lower_order_final": false)"}};
  std::string json = R"({"prediction_type": "flow_prediction", "use_flow_sigmas": true)" + options.at(variant) + "}";
  return kDpmSolver.read(Config::parse(json, "scheduler_config.json"), shift);
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
    for (int64_t i = 0; scm && i < x.numel(); ++i) x.data<float>()[i] *= kSigmaData;
    for (size_t i = 0; i < static_cast<size_t>(std::stoi(steps)); ++i) {
      auto at = static_cast<int64_t>(i);
      NoiseSource noise = [&](const Shape&) {
        return file.tensor(prefix + "noise").rows(at, at + 1).reshaped(x.shape());
      };
      x = scheduler->step(i, model(x, scheduler->timesteps()[i]), x, noise);
      Tensor expected = samples.rows(at, at + 1);
      if (scm) {
        expected = expected.reshaped({2, x.numel()});
        expect_close(scheduler->result(x), expected.rows(1, 2).reshaped(x.shape()), DType::f32, 64, prefix);
        expected = expected.rows(0, 1);
      }
      // Rounding grows from step to step: the model's own slope is up to 2.3.
      expect_close(x, expected.reshaped(x.shape()), DType::f32, 64 * (at + 1), prefix + " step " + std::to_string(i));
    }
    ++settings;
  }
  EXPECT_EQ(settings, 9 * 4 * 7 + 4);
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
      bool scm = scheduler.trigflow();
      Tensor next = Tensor::zeros(x.shape()), given = output.clone();
      for (int64_t k = 0; k < x.numel(); ++k) {
        float in = x.data<float>()[k], out = output.data<float>()[k];
        float clean = c.clean_x * in + c.clean_output * out;
        next.data<float>()[k] = c.next_x * in + c.next_clean * clean + c.next_previous * previous.data<float>()[k] +
                                c.next_noise * noise.data<float>()[k];
        previous.data<float>()[k] = clean;
        if (!scm) continue;  // the pipeline's change of variables comes before step()
        float tau = c.timestep, norm = std::sqrt(tau * tau + (1 - tau) * (1 - tau));
        given.data<float>()[k] =
            ((1 - 2 * tau) * c.input * in + (1 - 2 * tau + 2 * tau * tau) * out) / norm * kSigmaData;
      }
      Tensor expected = scheduler.step(i, given, x, [&](const Shape&) { return noise; });
      expect_close(next, expected, DType::f32, 256, scheduler.name() + " step " + std::to_string(i));
      x = expected;
    }
  };
  for (int64_t steps : {1, 2, 5, 20}) {
    for (const char* variant : {"default", "order1", "heun", "sigma_min", "euler_at_final"}) {
      check_steps(*make("dpm", variant, 3), steps, 0);
      if (steps > 2) check_steps(*make("dpm", variant, 3), steps, 2);
    }
    for (const SchedulerDef* def : scheduler_table()) check_steps(*def->make(3), steps, 0);
  }
}

// What the flag and configuration files take is a table of its own, in a room before this one.
TEST(Schedulers, AreThoseThatTheSettingTakes) {
  std::string names;
  for (const SchedulerDef* def : scheduler_table()) {
    names += (names.empty() ? "" : "|") + std::string(def->name);
    EXPECT_EQ(def->make(3)->name(), def->name);
  }
  EXPECT_EQ(names, find_setting("sampling.scheduler")->choices);
}

TEST(Schedulers, ANameTakesAnotherWithTheSameShift) {
  Config json = Config::parse(R"({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3})", "x");
  auto expect_times = [](std::unique_ptr<Scheduler> got, std::unique_ptr<Scheduler> expected) {
    got->set_steps(4);
    expected->set_steps(4);
    EXPECT_EQ(got->name(), expected->name());
    EXPECT_EQ(got->timesteps(), expected->timesteps());
  };
  expect_times(make_scheduler(json), kFlowEuler.make(3));
  expect_times(make_scheduler(json, "euler"), kFlowEuler.make(3));
  expect_times(make_scheduler(json, "dpm++"), kDpmSolver.make(3));
  EXPECT_THROW(make_scheduler(json, "heun"), Error);
}

TEST(Schedulers, RefuseImpossibleSteps) {
  for (int64_t steps : {int64_t{0}, int64_t{-3}, int64_t{1001}}) {
    for (const SchedulerDef* def : scheduler_table()) EXPECT_THROW(def->make(3)->set_steps(steps), Error) << def->name;
  }
}

TEST(Schedulers, SettingsThatAreNotDoneAreRefusedByName) {
  auto expect_refused = [](const std::string& json, const std::string& word) {
    try {
      make_scheduler(Config::parse(json, "scheduler_config.json"));
      FAIL() << json;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::model);
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  const std::string dpm =
      R"({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": true)";
  EXPECT_EQ(make_scheduler(Config::parse(dpm + "}", "x"))->name(), "dpm++");
  for (const char* key : {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "thresholding"}) {
    expect_refused(dpm + ", \"" + key + "\": true}", key);
  }
  expect_refused(dpm + R"(, "solver_order": 3})", "solver_order");
  expect_refused(dpm + R"(, "solver_type": "rk4"})", "rk4");
  expect_refused(dpm + R"(, "algorithm_type": "sde-dpmsolver++"})", "sde-dpmsolver++");
  expect_refused(dpm + R"(, "final_sigmas_type": "sigma_min", "beta_schedule": "scaled_linear"})", "beta_schedule");
  expect_refused(dpm + R"(, "num_train_timesteps": 100})", "num_train_timesteps");
  expect_refused(R"({"_class_name": "DPMSolverMultistepScheduler"})", "prediction_type");
  const std::string euler = R"({"_class_name": "FlowMatchEulerDiscreteScheduler")";
  EXPECT_EQ(make_scheduler(Config::parse(euler + "}", "x"))->name(), "euler");
  for (const char* key : {"use_dynamic_shifting", "use_karras_sigmas", "invert_sigmas", "stochastic_sampling"}) {
    expect_refused(euler + ", \"" + key + "\": true}", key);
  }
  expect_refused(euler + R"(, "shift_terminal": 0.1})", "shift_terminal");
  expect_refused(R"({"_class_name": "SCMScheduler", "sigma_data": 1})", "sigma_data");
  expect_refused(R"({"_class_name": "DDIMScheduler"})", "DDIMScheduler");
}

}  // namespace
}  // namespace kinora::test
