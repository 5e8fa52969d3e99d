#include "diffusion/calibrate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "diffusion/video_denoiser.h"

namespace kinora {
namespace {

// Takes the requests out of the options.
std::unique_ptr<ObservedModel> open_model(CalibrationOptions& o) {
  bool films = calibrates_with_films(o.folder);
  size_t count = films ? o.films.size() : o.pictures.size();
  if (count == 0) fail(ErrorKind::usage, "there is no prompt to calibrate with");
  if (count > Calibration::kMostPictures) {
    fail(ErrorKind::usage, std::to_string(count) + " pictures or films to calibrate with are too many (at most " +
                               std::to_string(Calibration::kMostPictures) + ")");
  }
  check(!o.runtime.quantization.format && o.steps > 0, "Calibration: wrong options");
  if (films) return observe_films(o.folder, o.variant, o.runtime, std::move(o.films));
  return observe_pictures(o.folder, o.variant, o.runtime, std::move(o.pictures));
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

bool calibrates_with_films(const std::string& folder) {
  namespace fs = std::filesystem;
  if (fs::exists(fs::path(folder) / "model_index.json")) return false;
  if (fs::is_directory(folder) && has_mmdit(folder, MmditRole::film)) return true;
  fail(ErrorKind::usage,
       "calibration draws pictures or films, which takes the whole folder of a Sana model (with "
       "model_index.json) or of an Open-Sora model, and " +
           folder + " is neither; transformers and text encoders alone are quantized without it");
}

Calibration::Calibration(CalibrationOptions options) : o_(std::move(options)), model_(open_model(o_)) {}

void Calibration::draw() {
  constexpr double kGoldenRatio = 0.6180339887498949;
  size_t count = model_->count();
  for (size_t i = 0; i < count; ++i) {
    if (o_.on_picture) o_.on_picture(i, count);
    int64_t step = 0, steps = 1;
    double shift = std::fmod(static_cast<double>(i) * kGoldenRatio, 1.0);
    RunObserver observer;
    observer.on_stage = [&](const StageReport& report) {
      if (report.stage == Stage::denoise) {
        step = report.done;
        steps = report.total;
      }
      if (o_.on_stage) o_.on_stage(report);
    };
    observer.on_text = [&](ComponentRun run) { keep_text(std::move(run)); };
    observer.wants_step = [&] { return counts(step, steps, o_.steps, shift); };
    observer.on_transformer = [&](ComponentRun run) { runs_[run.component].push_back(std::move(run)); };
    model_->draw(i, observer);
  }
  model_->finish();
  for (auto& [component, runs] : runs_) {  // few changes from one graph to another
    std::stable_sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
  }
}

void Calibration::keep_text(ComponentRun run) {
  std::vector<ComponentRun>& runs = runs_[run.component];
  auto ids = run.feed.at("ids").values<int32_t>();
  for (const ComponentRun& known : runs) {  // the negative prompt comes again and again
    auto others = known.feed.at("ids").values<int32_t>();
    if (std::equal(ids.begin(), ids.end(), others.begin(), others.end())) return;
  }
  runs.push_back(std::move(run));
}

void Calibration::begin(const QuantizablePart& part, std::vector<std::string> weights) {
  component_ = part.component;
  auto found = runs_.find(component_);
  found_ = found != runs_.end() && model_->holds(part) ? &found->second : nullptr;
  weights_ = std::move(weights);
  inputs_.clear();
}

// Of the weights from this one on, what each reads.
std::map<std::string, ObservedInput> Calibration::inputs_from(const std::string& weight) {
  std::set<std::string> left(std::find(weights_.begin(), weights_.end(), weight), weights_.end());
  ObservedGraph all = observe_products(
      model_->graph(found_->front()), [&](const std::string& name) { return left.contains(name); }, kMostFull);
  std::map<std::string, ObservedInput> input_of;
  for (const ObservedInput& input : all.inputs) {
    for (const std::string& name : input.weights) input_of[name] = input;
  }
  return input_of;
}

// As many of the weights from this one on as there is memory for, and those that share an input with them.
std::vector<std::string> Calibration::next_group(const std::string& weight) {
  constexpr size_t kCopies = 4;  // what a run gives, in its memory and out of it; the sum; and its factor
  std::map<std::string, ObservedInput> input_of = inputs_from(weight);
  std::set<std::string> taken;
  std::vector<std::string> group;
  size_t bytes = 0;
  for (auto it = std::find(weights_.begin(), weights_.end(), weight); it != weights_.end(); ++it) {
    auto input = input_of.find(*it);
    if (input != input_of.end() && taken.insert(input->second.output).second) {
      int64_t length = input->second.length;
      bytes += static_cast<size_t>(input->second.full ? length * length : length) * 4 * kCopies;
      if (bytes > o_.memory && taken.size() > 1) break;
    }
    group.push_back(*it);
  }
  return group;
}

void Calibration::collect(const std::string& weight) {
  inputs_.clear();
  if (!found_) return;
  std::vector<std::string> group = next_group(weight);
  if (o_.on_layers) o_.on_layers(component_, group.size());
  std::set<std::string> names(group.begin(), group.end());
  const Runtime& runtime = o_.runtime;
  std::optional<ObservedGraph> observed;
  std::optional<Executable> executable;
  const std::vector<int64_t>* key = nullptr;
  std::vector<std::shared_ptr<Input>> inputs;
  for (const ComponentRun& run : *found_) {
    if (!key || *key != run.key) {
      key = &run.key;
      observed.emplace(observe_products(
          model_->graph(run), [&](const std::string& name) { return names.contains(name); }, kMostFull));
      if (observed->inputs.empty()) break;
      executable.emplace(compile(observed->graph, *runtime.backend, runtime.context));
    }
    std::map<std::string, Tensor> out = executable->run(run.feed);
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
  model_->rest();
}

std::shared_ptr<Calibration::Input> Calibration::input_of(const std::string& weight) {
  if (!inputs_.contains(weight)) collect(weight);
  return inputs_[weight];
}

std::shared_ptr<const InputMoments> Calibration::of(const std::string& weight) {
  std::shared_ptr<Input> input = input_of(weight);
  if (!input) return nullptr;
  if (!input->moments)
    input->moments = moments_of_layer(std::move(input->sum), o_.runtime.context.pool.get(), component_, weight);
  return input->moments;
}

void Calibration::save(const std::string& file,
                       const std::vector<std::pair<QuantizablePart, std::vector<std::string>>>& parts) {
  std::vector<SafetensorsSpec> specs;
  std::map<std::string, std::string> metadata = SavedStatistics::mark();
  std::vector<std::vector<std::string>> first(parts.size());  // readers of each input
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto& [part, weights] = parts[i];
    begin(part, weights);
    if (weights.empty()) continue;
    std::map<std::string, ObservedInput> input_of;
    if (found_) input_of = inputs_from(weights.front());
    std::map<std::string, std::string> names;  // of tensors, by output
    for (const std::string& weight : weights) {
      std::string& tensor = metadata[SavedStatistics::name(part, weight)];
      auto input = input_of.find(weight);
      if (input == input_of.end()) continue;
      auto [known, fresh] = names.emplace(input->second.output, SavedStatistics::name(part, weight));
      tensor = known->second;
      if (!fresh) continue;
      int64_t length = input->second.length;
      specs.push_back({tensor, DType::f32, input->second.full ? Shape{length, length} : Shape{length}});
      first[i].push_back(weight);
    }
  }
  write_safetensors(file, specs, metadata, [&](const auto& write) {
    for (size_t i = 0; i < parts.size(); ++i) {
      begin(parts[i].first, parts[i].second);
      for (const std::string& weight : first[i]) write(input_of(weight)->sum);
    }
  });
}

}  // namespace kinora
