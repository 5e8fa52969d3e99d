// Statistics for quantizing a model: what the inputs of its products are like while it draws pictures.
//
// Pictures are drawn once, with the model as it is; what the text encoder was given, and the transformer at some of the
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

#include "core/calibrated.h"
#include "diffusion/pipeline.h"

namespace kinora {

struct CalibrationOptions {
  std::string folder, variant;
  Runtime runtime;                  // without quantization
  std::vector<Request> pictures;    // with a prompt each; at most kMostPictures
  int64_t steps = 4;                // of each picture that count, evenly spread, and others for the next picture
  size_t memory = size_t{1} << 30;  // for moments and what is made of them, unless one input alone takes more
  std::function<void(size_t picture, size_t pictures)> on_picture;             // before each is drawn, from 0
  std::function<void(const StageReport&)> on_stage;                            // of a picture
  std::function<void(const std::string& component, size_t layers)> on_layers;  // before layers are looked at
};

class Calibration {
 public:
  static constexpr size_t kMostPictures = 1024;
  // Inputs longer than this give the diagonal of their moments alone.
  static constexpr int64_t kMostFull = 6144;

  // Opens the model. Throws Error(usage) where the folder is not that of a Sana model or there are no pictures or too
  // many, and what Pipeline::open throws; each request is checked.
  explicit Calibration(CalibrationOptions options);

  // Draws the pictures. Throws Error(cancelled) as Pipeline::generate.
  void draw();
  // Which weights ("….weight") of a component will be asked for, in this order.
  void begin(const std::string& component, std::vector<std::string> weights);
  // The moments of a weight's inputs; null when no product of the model reads it. Throws Error(model) naming the weight
  // where they are not finite.
  std::shared_ptr<const InputMoments> of(const std::string& weight);

 private:
  // One run of a component.
  struct Sample {
    std::vector<int64_t> key;  // equal for runs of one graph
    std::map<std::string, Tensor> feed;
  };
  struct Input {
    Tensor sum;  // becomes the mean
    int64_t rows = 0;
    std::shared_ptr<const InputMoments> moments;  // once asked for
  };
  void keep_text(const Tensor& ids, const Tensor& mask);
  void keep_step(const DenoiseInputs& inputs);
  Graph graph_of(const Sample& sample);
  std::vector<std::string> next_group(const std::string& weight);
  void collect(const std::string& weight);

  CalibrationOptions o_;
  Pipeline pipeline_;
  size_t picture_ = 0;
  int64_t step_ = 0, steps_ = 0;  // of the picture being drawn
  Tensor caption_;                // of the last step kept, and its rows without padding
  std::vector<Tensor> captions_;
  std::map<std::string, std::vector<Sample>> samples_;  // by component

  std::string component_;
  std::vector<std::string> weights_;
  std::map<std::string, std::shared_ptr<Input>> inputs_;  // of the layers at hand; null: not a product's
};

}  // namespace kinora
