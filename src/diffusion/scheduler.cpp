#include "diffusion/scheduler.h"

#include <algorithm>

namespace kinora {
namespace {

constexpr const SchedulerDef* kTable[] = {&kDpmSolver, &kFlowEuler, &kScm};

std::string listed(std::string_view SchedulerDef::*word) {
  std::string list;
  for (const SchedulerDef* def : kTable) list += (list.empty() ? "" : ", ") + std::string(def->*word);
  return list;
}

}  // namespace

std::span<const SchedulerDef* const> scheduler_table() { return kTable; }

void check_steps(int64_t steps) {
  if (steps < 1 || steps > 1000) {
    fail(ErrorKind::usage, "steps must be from 1 to 1000, not " + std::to_string(steps));
  }
}

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

std::unique_ptr<Scheduler> make_scheduler(const Config& json, const std::string& name) {
  std::string class_name = json.text("_class_name", "");
  double shift = json.real("flow_shift", 1e-3, 1e3, json.real("shift", 1e-3, 1e3, 1));
  for (const SchedulerDef* def : kTable) {
    bool described = def->class_name == class_name;
    if (name.empty() ? !described : def->name != name) continue;
    if (!described) return def->make(shift);
    json.integer("num_train_timesteps", 1000, 1000, 1000);
    return def->read(json, shift);
  }
  if (!name.empty()) {
    fail(ErrorKind::usage, "unknown scheduler '" + name + "' (known: " + listed(&SchedulerDef::name) + ")");
  }
  fail(ErrorKind::model,
       json.name() + ": scheduler \"" + class_name + "\" is not supported (" + listed(&SchedulerDef::class_name) + ")");
}

}  // namespace kinora
