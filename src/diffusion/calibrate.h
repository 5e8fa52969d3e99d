// Statistics for quantizing a model: what the inputs of its products are like while it draws pictures, or films.
//
// They are drawn once, with the model as it is; what the text encoder was given, and the transformer at some of the
// steps, is kept. Then both are run on that again, for a few layers at a time, with the moments of those layers' inputs
// as outputs (ops/observe.h). So the memory for moments, which grows with the square of the width, stays bounded,
// whatever the number of layers. Samples are taken in a fixed order, and a backend's results do not depend on the
// number of threads: neither do the moments.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "diffusion/observed_model.h"
#include "ops/observe.h"

namespace kinora {

struct CalibrationOptions {
  std::string folder, variant;
  Runtime runtime;                  // without quantization
  std::vector<Request> pictures;    // with a prompt each; at most kMostPictures
  std::vector<FilmRequest> films;   // or these, of a model of films
  int64_t steps = 4;                // of each picture that count, evenly spread, and others for the next picture
  size_t memory = size_t{1} << 30;  // for moments and what is made of them, unless one input alone takes more
  std::function<void(size_t picture, size_t pictures)> on_picture;             // before each is drawn, from 0
  std::function<void(const StageReport&)> on_stage;                            // of a picture
  std::function<void(const std::string& component, size_t layers)> on_layers;  // before layers are looked at
};

class Calibration : public Statistics {
 public:
  static constexpr size_t kMostPictures = 1024;
  // Inputs longer than this give the diagonal of their moments alone.
  static constexpr int64_t kMostFull = 6144;

  // Opens the model. Throws Error(usage) where the folder is not that of a Sana or Open-Sora model or there are no
  // pictures or too many, and what Pipeline::open and FilmPipeline::open throw; each request is checked.
  explicit Calibration(CalibrationOptions options);

  // Draws the pictures. Throws Error(cancelled) as Pipeline::generate.
  void draw();
  void begin(const QuantizablePart& part, std::vector<std::string> weights) override;
  std::shared_ptr<const InputMoments> of(const std::string& weight) override;
  // After draw(): writes what SavedStatistics reads, of all these weights.
  void save(const std::string& file, const std::vector<std::pair<QuantizablePart, std::vector<std::string>>>& parts);

 private:
  struct Input {
    Tensor sum;  // becomes the mean
    int64_t rows = 0;
    std::shared_ptr<const InputMoments> moments;  // once asked for
  };
  void keep_text(ComponentRun run);
  std::map<std::string, ObservedInput> inputs_from(const std::string& weight);
  std::vector<std::string> next_group(const std::string& weight);
  void collect(const std::string& weight);
  std::shared_ptr<Input> input_of(const std::string& weight);

  CalibrationOptions o_;
  std::unique_ptr<ObservedModel> model_;
  std::map<std::string, std::vector<ComponentRun>> runs_;  // by component

  std::string component_;
  std::vector<ComponentRun>* found_ = nullptr;  // its runs; null when it did not draw
  std::vector<std::string> weights_;
  std::map<std::string, std::shared_ptr<Input>> inputs_;  // of the layers at hand; null: not a product's
};

// Whether the model in `folder` is calibrated with films in place of pictures. Throws Error(usage) when with neither.
bool calibrates_with_films(const std::string& folder);

}  // namespace kinora
