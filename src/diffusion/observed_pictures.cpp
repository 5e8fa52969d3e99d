#include <filesystem>

#include "diffusion/observed_model.h"

namespace kinora {
namespace {

namespace fs = std::filesystem;

constexpr const char kText[] = "text_encoder", kTransformer[] = "transformer";

class ObservedPictures : public ObservedModel {
 public:
  ObservedPictures(Pipeline pipeline, std::vector<Request> pictures)
      : pipeline_(std::move(pipeline)), pictures_(std::move(pictures)) {
    check_each("picture", pictures_.size(), [&](size_t i) { pipeline_.check(pictures_[i]); });
  }

  size_t count() const override { return pictures_.size(); }

  void draw(size_t index, const RunObserver& observer) override {
    pipeline_.text_encoder().observe([&](const Tensor& ids, const Tensor& mask) {
      observer.on_text({kText, {ids.shape()[0], ids.shape()[1]}, {{"ids", ids}, {"mask", mask}}});
    });
    pipeline_.denoiser().observe([&](const DenoiseInputs& in) {
      if (observer.wants_step()) show_step(in, observer);
    });
    Request request = pictures_[index];
    request.on_stage = observer.on_stage;
    pipeline_.generate(request);
  }

  void finish() override {
    pipeline_.text_encoder().observe({});
    pipeline_.denoiser().observe({});
    pipeline_.forget_prompts();
    pipeline_.autoencoder().close();
  }

  Graph graph(const ComponentRun& run) override {
    const std::vector<int64_t>& key = run.key;
    if (run.component == kText) return pipeline_.text_encoder().graph(key[0], key[1]);
    return pipeline_.denoiser().graph(1, key[0], key[1], key[2]);
  }

  void rest() override {
    pipeline_.text_encoder().weights().release_pages();
    pipeline_.denoiser().weights().release_pages();
  }

  bool holds(const QuantizablePart& part) const override {
    std::error_code ignored;
    return fs::equivalent(part.folder, fs::path(pipeline_.folder()) / part.component, ignored);
  }

 private:
  // Each row of the batch by itself, without its padding, which would count as much as what is attended to.
  void show_step(const DenoiseInputs& in, const RunObserver& observer) {
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
      observer.on_transformer({kTransformer, {s[1], s[2], one.caption.shape()[1]}, pipeline_.denoiser().feed(one)});
    }
  }

  Pipeline pipeline_;
  std::vector<Request> pictures_;
  Tensor caption_;  // of the last step shown, and its rows without padding
  std::vector<Tensor> captions_;
};

}  // namespace

std::unique_ptr<ObservedModel> observe_pictures(const std::string& folder, const std::string& variant,
                                                const Runtime& runtime, std::vector<Request> pictures) {
  return std::make_unique<ObservedPictures>(Pipeline::open(folder, variant, runtime), std::move(pictures));
}

}  // namespace kinora
