#include "diffusion/calibrate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "diffusion/finite.h"
#include "ops/observe.h"

namespace kinora {
namespace {

constexpr const char kText[] = "text_encoder", kTransformer[] = "transformer";

CalibrationOptions checked(CalibrationOptions o) {
  if (!std::filesystem::exists(std::filesystem::path(o.folder) / "model_index.json")) {
    fail(ErrorKind::usage, "calibration draws pictures, which takes the whole folder of a Sana model (with " +
                               std::string("model_index.json), and ") + o.folder +
                               " is none; films and text encoders alone are quantized without it");
  }
  if (o.pictures.empty()) fail(ErrorKind::usage, "there is no prompt to calibrate with");
  if (o.pictures.size() > Calibration::kMostPictures) {
    fail(ErrorKind::usage, std::to_string(o.pictures.size()) + " pictures to calibrate with are too many (at most " +
                               std::to_string(Calibration::kMostPictures) + ")");
  }
  check(!o.runtime.quantization.format && o.steps > 0, "Calibration: wrong options");
  return o;
}

// Whether step s of S counts when `wanted` of them do; `shift`, from 0 to 1, moves all of them.
bool counts(int64_t s, int64_t all, int64_t wanted, double shift) {
  double each = static_cast<double>(all) / static_cast<double>(std::min(all, wanted));
  for (int64_t i = 0; i < std::min(all, wanted); ++i) {
    if (static_cast<int64_t>((static_cast<double>(i) + shift) * each) == s) return true;
  }
  return false;
}

void add_to(Tensor& sum, const Tensor& part) {
  if (!sum.defined()) {
    sum = part.clone();
    return;
  }
  float* to = sum.data<float>();
  const float* from = part.data<float>();
  for (int64_t i = 0; i < sum.numel(); ++i) to[i] += from[i];
}

}  // namespace

Calibration::Calibration(CalibrationOptions options)
    : o_(checked(std::move(options))), pipeline_(Pipeline::open(o_.folder, o_.variant, o_.runtime)) {
  for (size_t i = 0; i < o_.pictures.size(); ++i) {
    try {
      pipeline_.check(o_.pictures[i]);
    } catch (const Error& error) {
      throw Error(error.kind(), "picture " + std::to_string(i + 1) + " to calibrate with: " + error.what());
    }
  }
}

void Calibration::draw() {
  pipeline_.text_encoder().observe([&](const Tensor& ids, const Tensor& mask) { keep_text(ids, mask); });
  pipeline_.denoiser().observe([&](const DenoiseInputs& inputs) { keep_step(inputs); });
  for (picture_ = 0; picture_ < o_.pictures.size(); ++picture_) {
    if (o_.on_picture) o_.on_picture(picture_, o_.pictures.size());
    Request request = o_.pictures[picture_];
    request.on_stage = [&](const StageReport& report) {
      if (report.stage == Stage::denoise && report.done == 0) {
        step_ = 0;
        steps_ = report.total;
      }
      if (o_.on_stage) o_.on_stage(report);
    };
    pipeline_.generate(request);
  }
  pipeline_.text_encoder().observe({});
  pipeline_.denoiser().observe({});
  pipeline_.forget_prompts();
  pipeline_.autoencoder().close();
  for (auto& [component, samples] : samples_) {  // few changes from one graph to another
    std::stable_sort(samples.begin(), samples.end(), [](const Sample& a, const Sample& b) { return a.key < b.key; });
  }
}

void Calibration::keep_text(const Tensor& ids, const Tensor& mask) {
  std::vector<Sample>& samples = samples_[kText];
  for (const Sample& known : samples) {  // the negative prompt comes again and again
    auto a = known.feed.at("ids").values<int32_t>(), b = ids.values<int32_t>();
    if (std::equal(a.begin(), a.end(), b.begin(), b.end())) return;
  }
  samples.push_back({{ids.shape()[0], ids.shape()[1]}, {{"ids", ids}, {"mask", mask}}});
}

// Each row of the batch by itself, without its padding, which would count as much as what is attended to.
void Calibration::keep_step(const DenoiseInputs& in) {
  constexpr double kGoldenRatio = 0.6180339887498949;
  double shift = std::fmod(static_cast<double>(picture_) * kGoldenRatio, 1.0);
  if (!counts(step_++, steps_, o_.steps, shift)) return;
  int64_t batch = in.latents.shape()[0];
  if (!caption_.defined() || caption_.raw() != in.caption.raw()) {
    caption_ = in.caption;
    captions_.clear();
    int64_t tokens = caption_.shape()[1], width = caption_.shape()[2];
    for (int64_t b = 0; b < batch; ++b) {
      int64_t used = in.lengths.data<int32_t>()[b];
      Tensor row = caption_.rows(b, b + 1).reshaped({tokens, width}).rows(0, used);
      captions_.push_back(row.clone().reshaped({1, used, width}));
    }
  }
  for (int64_t b = 0; b < batch; ++b) {
    DenoiseInputs one;
    one.latents = in.latents.rows(b, b + 1).clone();
    one.timestep = in.timestep.rows(b, b + 1);
    if (pipeline_.denoiser().config().guidance_embeds) one.guidance = in.guidance.rows(b, b + 1);
    one.caption = captions_[static_cast<size_t>(b)];
    one.lengths = in.lengths.rows(b, b + 1);
    const Shape& s = one.latents.shape();
    samples_[kTransformer].push_back({{s[1], s[2], one.caption.shape()[1]}, pipeline_.denoiser().feed(one)});
  }
}

void Calibration::begin(const std::string& component, std::vector<std::string> weights) {
  component_ = component;
  weights_ = std::move(weights);
  inputs_.clear();
}

Graph Calibration::graph_of(const Sample& sample) {
  const std::vector<int64_t>& key = sample.key;
  if (component_ == kText) return pipeline_.text_encoder().graph(key[0], key[1]);
  return pipeline_.denoiser().graph(1, key[0], key[1], key[2]);
}

// As many of the weights from this one on as there is memory for, and those that share an input with them.
std::vector<std::string> Calibration::next_group(const std::string& weight) {
  constexpr size_t kCopies = 4;  // what a run gives, in its memory and out of it; the sum; and its factor
  auto first = std::find(weights_.begin(), weights_.end(), weight);
  std::set<std::string> left(first, weights_.end());
  ObservedGraph all = observe_products(
      graph_of(samples_.at(component_).front()), [&](const std::string& name) { return left.contains(name); },
      kMostFull);
  std::map<std::string, const ObservedInput*> input_of;
  for (const ObservedInput& input : all.inputs) {
    for (const std::string& name : input.weights) input_of[name] = &input;
  }
  std::set<const ObservedInput*> taken;
  std::vector<std::string> group;
  size_t bytes = 0;
  for (auto it = first; it != weights_.end(); ++it) {
    const ObservedInput* input = input_of[*it];
    if (input && taken.insert(input).second) {
      bytes += static_cast<size_t>(input->full ? input->length * input->length : input->length) * 4 * kCopies;
      if (bytes > o_.memory && taken.size() > 1) break;
    }
    group.push_back(*it);
  }
  return group;
}

void Calibration::collect(const std::string& weight) {
  inputs_.clear();
  auto found = samples_.find(component_);
  if (found == samples_.end()) return;
  std::vector<std::string> group = next_group(weight);
  if (o_.on_layers) o_.on_layers(component_, group.size());
  std::set<std::string> names(group.begin(), group.end());
  const Runtime& runtime = pipeline_.runtime();
  std::optional<ObservedGraph> observed;
  std::optional<Executable> executable;
  const std::vector<int64_t>* key = nullptr;
  std::vector<std::shared_ptr<Input>> inputs;
  for (const Sample& sample : found->second) {
    if (!key || *key != sample.key) {
      key = &sample.key;
      observed.emplace(observe_products(
          graph_of(sample), [&](const std::string& name) { return names.contains(name); }, kMostFull));
      if (observed->inputs.empty()) break;
      executable.emplace(compile(observed->graph, *runtime.backend, runtime.context));
    }
    std::map<std::string, Tensor> out = executable->run(sample.feed);
    inputs.resize(observed->inputs.size());
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i]) inputs[i] = std::make_shared<Input>();
      add_to(inputs[i]->sum, out.at(observed->inputs[i].output));
      inputs[i]->rows += observed->inputs[i].rows;
    }
  }
  for (const std::string& name : group) inputs_[name] = nullptr;
  for (size_t i = 0; i < inputs.size(); ++i) {
    Tensor& sum = inputs[i]->sum;
    for (float& v : std::span(sum.data<float>(), static_cast<size_t>(sum.numel())))
      v /= static_cast<float>(inputs[i]->rows);
    for (const std::string& name : observed->inputs[i].weights) inputs_[name] = inputs[i];
  }
  runtime.context.arena->release();
  pipeline_.text_encoder().weights().release_pages();
  pipeline_.denoiser().weights().release_pages();
}

std::shared_ptr<const InputMoments> Calibration::of(const std::string& weight) {
  if (!inputs_.contains(weight)) collect(weight);
  std::shared_ptr<Input> input = inputs_[weight];
  if (!input) return nullptr;
  if (!input->moments) {
    try {
      input->moments = std::make_shared<InputMoments>(std::move(input->sum), o_.runtime.context.pool.get());
    } catch (const Error& error) {
      fail(error.kind(), "'" + weight + "' of the " + component_ + " cannot be calibrated: " + error.what());
    }
  }
  return input->moments;
}

}  // namespace kinora
