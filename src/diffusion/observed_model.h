// What calibration (calibrate.h) asks of a model, be it one of pictures or of films: that it draws, shows what its
// components are given meanwhile, and gives their graphs to run on that again.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "diffusion/film_pipeline.h"
#include "diffusion/statistics.h"

namespace kinora {

// One run of a component.
struct ComponentRun {
  std::string component;     // as QuantizationRule names it
  std::vector<int64_t> key;  // equal for runs of one graph
  std::map<std::string, Tensor> feed;
};

// All must be set.
struct RunObserver {
  std::function<void(const StageReport&)> on_stage;
  std::function<void(ComponentRun)> on_text;         // of a text encoder, whose feed has "ids"
  std::function<bool()> wants_step;                  // whether the transformer's runs of the step at work are wanted
  std::function<void(ComponentRun)> on_transformer;  // of a step that is
};

class ObservedModel {
 public:
  virtual ~ObservedModel() = default;
  virtual size_t count() const = 0;  // of pictures or films
  // One of them, from 0, in order. Throws as generate() of its pipeline does.
  virtual void draw(size_t index, const RunObserver& observer) = 0;
  virtual void finish() = 0;  // all are drawn: gives back the memory that only drawing needed
  virtual Graph graph(const ComponentRun& run) = 0;
  virtual void rest() = 0;                                    // gives back the pages of weights that graphs have read
  virtual bool holds(const QuantizablePart& part) const = 0;  // or does that lie beside what draws
};

// Each opens the model in `folder` and checks all requests. Throws what their pipelines throw when opened, and what
// is wrong with a request with its number.
std::unique_ptr<ObservedModel> observe_pictures(const std::string& folder, const std::string& variant,
                                                const Runtime& runtime, std::vector<Request> pictures);
// Where a request is silent: at most 33 frames and 16 steps. None may have a first picture drawn for it.
std::unique_ptr<ObservedModel> observe_films(const std::string& folder, const std::string& variant,
                                             const Runtime& runtime, std::vector<FilmRequest> films);

// check(0), check(1), … with "picture 1 to calibrate with: " before what is wrong.
template <class F>
void check_each(const char* noun, size_t count, const F& check) {
  for (size_t i = 0; i < count; ++i) {
    try {
      check(i);
    } catch (const Error& error) {
      throw Error(error.kind(),
                  std::string(noun) + " " + std::to_string(i + 1) + " to calibrate with: " + error.what());
    }
  }
}

}  // namespace kinora
