#include <algorithm>
#include <filesystem>

#include "diffusion/observed_model.h"

namespace kinora {
namespace {

namespace fs = std::filesystem;

constexpr const char kT5[] = "t5", kTransformer[] = "transformer";
// Of requests that are silent: what layers read differs little from that of longer films.
constexpr int64_t kFrames = 33, kSteps = 16;
constexpr size_t kTogether = FilmPipeline::kRememberedTexts / 2;  // films, of at most two texts each, encoded at once

class ObservedFilms : public ObservedModel {
 public:
  ObservedFilms(FilmPipeline pipeline, std::vector<FilmRequest> films)
      : pipeline_(std::move(pipeline)), films_(std::move(films)) {
    const FilmDefaults& d = pipeline_.defaults();
    check_each("film", films_.size(), [&](size_t i) {
      FilmRequest& r = films_[i];
      if (!r.frames) r.frames = std::min(d.frames, pipeline_.reference_frames(kFrames));
      if (!r.steps) r.steps = std::min(d.steps, kSteps);
      if (!r.first_picture.empty())
        fail(ErrorKind::usage, "its first picture must be given, as calibration draws films alone");
      r = pipeline_.complete(r);
    });
    pipeline_.keep_open(true);
  }

  size_t count() const override { return films_.size(); }

  void draw(size_t index, const RunObserver& observer) override {
    pipeline_.observe({[&](const Tensor& ids) {
                         observer.on_text({kT5, {ids.shape()[1]}, {{"ids", ids}}});
                       },
                       [&](const VideoModelInputs& in) {
                         if (observer.wants_step()) observer.on_transformer(run_of(in));
                       }});
    if (index % kTogether == 0) encode_from(index);
    FilmRequest request = films_[index];
    request.on_stage = observer.on_stage;
    pipeline_.sample(request);
  }

  void finish() override {
    pipeline_.observe({});
    pipeline_.forget_texts();
    pipeline_.keep_open(false);
    films_.clear();
    t5_.emplace(pipeline_.open_t5());
  }

  Graph graph(const ComponentRun& run) override {
    const std::vector<int64_t>& key = run.key;
    if (run.component == kT5) return t5_->graph(1, key[0]);
    return pipeline_.denoiser().graph({1, key[0], key[1], key[2], key[3]});
  }

  void rest() override {
    t5_->weights().release_pages();
    pipeline_.denoiser().weights().release_pages();
  }

  // Flux's transformer may lie beside that of films.
  bool holds(const QuantizablePart& part) const override {
    std::error_code ignored;
    if (part.component == kT5) return fs::equivalent(part.folder, pipeline_.t5_folder(), ignored);
    return part.base == mmdit_base(pipeline_.folder(), MmditRole::film) &&
           fs::equivalent(part.folder, pipeline_.folder(), ignored);
  }

 private:
  void encode_from(size_t index) {
    std::vector<std::string> texts;
    for (size_t i = index; i < std::min(index + kTogether, films_.size()); ++i) {
      for (const std::string& text : pipeline_.texts_of(films_[i])) texts.push_back(text);
    }
    pipeline_.encode_texts(texts);
  }

  // Its tensors are shared with the sampler, which makes new latents each step and leaves the rest as it is: of all
  // runs of a step the latents are kept once, and texts and condition once a film.
  ComponentRun run_of(const VideoModelInputs& in) {
    VideoDenoiser::Extent e = VideoDenoiser::extent_of(in);
    return {kTransformer, {e.frames, e.rows, e.columns, e.text}, pipeline_.denoiser().feed(in)};
  }

  FilmPipeline pipeline_;
  std::vector<FilmRequest> films_;
  std::optional<T5Encoder> t5_;
};

}  // namespace

std::unique_ptr<ObservedModel> observe_films(const std::string& folder, const std::string& variant,
                                             const Runtime& runtime, std::vector<FilmRequest> films) {
  return std::make_unique<ObservedFilms>(FilmPipeline::open(folder, variant, runtime), std::move(films));
}

}  // namespace kinora
