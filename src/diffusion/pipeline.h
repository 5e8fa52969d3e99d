// Text to image with a published Sana folder: tokenizer, text encoder, transformer, autoencoder and sampler together,
// with the semantics of diffusers' SanaPipeline, SanaSprintPipeline and their image-to-image forms.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "diffusion/components.h"
#include "diffusion/device_sampler.h"
#include "diffusion/memory_limit.h"
#include "diffusion/scheduler.h"
#include "io/image.h"
#include "text/tokenizer.h"

namespace kinora {

// What a model folder asks for where a request is silent. From kinora.json when the folder has one, else as diffusers.
struct ModelDefaults {
  int64_t width = 1024, height = 1024, steps = 20, max_sequence_length = 300;
  double guidance = 4.5;
  bool complex_human_instruction = true, use_resolution_binning = true;
};

struct LoadOptions {
  std::string variant;             // "fp16", "bf16"; empty: the plain files, else what is there
  std::string device = "auto";     // as make_runtime
  std::string dtype = "auto";      // as make_runtime; "float16" is for the transformer alone
  int threads = 0;                 // 0: one per physical core
  std::string attention = "auto";  // as make_runtime
  std::string quantize = "none";   // a format's name; of text encoder and transformer, while they are loaded
  std::string quantize_layers;     // rules that come before the built-in ones, see parse_quantization
  size_t max_memory = 0;           // bytes, of the device or of the process; 0: no limit
  const std::atomic<bool>* stop = nullptr;
};

Runtime make_runtime(const LoadOptions& options);  // throws as the other, and Error(usage) for a wrong format or rule

// What a step reports. Returning is enough; to stop, set LoadOptions::stop.
struct StepReport {
  int64_t step = 0, steps = 0;  // steps done of all
  // [batch, h, w, C] of the clean picture expected, not divided by the scaling factor; where the model runs.
  const Tensor* latents = nullptr;
};

// Where a request is: `done` of `total` prompts encoded, steps taken, tiles decoded. Reported before the first and
// after each.
enum class Stage { encode, denoise, decode };
struct StageReport {
  Stage stage;
  int64_t done, total;
};

struct Request {
  std::string prompt, negative_prompt;
  int64_t width = 0, height = 0, steps = 0;  // 0: the model's default
  double guidance = -1;                      // negative: the model's default
  std::vector<uint64_t> seeds{0};            // one picture each, in one batch
  std::string scheduler;                     // "", "dpm++", "euler", "scm"
  bool cuda_noise = false;                   // torch's CUDA generator instead of its CPU generator
  std::optional<Tensor> latents;             // initial noise [batch, C, h, w] f32, instead of the seeds'
  std::optional<Image> init_image;
  double strength = 0.6;  // of image-to-image: 1 starts from noise alone
  // Progressive: drawn at this size (as draft_size takes it) first, then the latents are enlarged, given noise of level
  // `refine_strength` and refined.
  std::string from_resolution;
  double refine_strength = 0.8;
  std::optional<Tiling> tiling;
  std::function<void(const StepReport&)> on_step;
  std::function<void(const StageReport&)> on_stage;
};

struct Result {
  std::vector<Image> images;
  Tensor initial_latents, latents;  // [batch, C, h, w] f32
  int64_t width = 0, height = 0, steps = 0;
  double guidance = 0;
  std::string scheduler, device, dtype;   // as a request may name them
  double draft_seconds = 0, seconds = 0;  // of the steps, drawing small and at the whole size
};

// The text encoder's result for one prompt: [1, tokens, hidden], where it was computed, and [1, tokens].
struct Conditioning {
  Tensor hidden, mask;
};

class Pipeline {
 public:
  // Reads model_index.json and the components' folders; weights are mapped, not read. Throws Error(io) or Error(model).
  static Pipeline load(const std::string& folder, const LoadOptions& options = {});
  // With a session's runtime, and a limit of memory as LoadOptions has it.
  static Pipeline open(const std::string& folder, const std::string& variant, const Runtime& runtime,
                       size_t max_memory = 0);

  Result generate(const Request& request);
  // What the parts of the work take, one after another.
  std::vector<ComponentMemory> memory_plan(const Request& request) const;
  void check(const Request& request) const;  // throws as generate() would before it begins to compute
  // Encodes as diffusers does: strip, lower-case, the complex human instruction before a positive prompt, right
  // padding, the first token and the last max_sequence_length - 1. The last few prompts are remembered.
  const Conditioning& encode_prompt(const std::string& prompt, bool negative);
  void forget_prompts() { prompts_.clear(); }
  // latents [batch, h, w, C] as the transformer sees them -> pictures. `on_tile` is called as Autoencoder says.
  Tensor decode(const Tensor& latents, std::optional<Tiling> tiling = {}, const TileReport& on_tile = {});

  bool sprint() const { return denoiser_->config().guidance_embeds; }
  const ModelDefaults& defaults() const { return defaults_; }
  const std::string& folder() const { return folder_; }
  TextEncoder& text_encoder() { return *text_encoder_; }
  Denoiser& denoiser() { return *denoiser_; }
  Autoencoder& autoencoder() { return *autoencoder_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const Runtime& runtime() const { return runtime_; }

 private:
  Pipeline() = default;
  struct Plan;
  using Size = std::pair<int64_t, int64_t>;  // width, height
  Plan plan(const Request& request, std::optional<Size> draft = {}) const;
  Plan draft_plan(const Request& request, const Plan& whole) const;
  Tensor draw(const Request& request, const Plan& plan, Result& result);
  Tensor refine(const Request& request, const Plan& plan, const Tensor& draft);
  Tensor initial_latents(const Request& request, const Plan& plan, std::vector<NoiseSource>& sources) const;
  Tensor denoise(const Request& request, const Plan& plan, Tensor latents, std::vector<NoiseSource>& sources);
  Tensor place_hidden(const Tensor& hidden, int64_t used, int64_t length) const;
  Tensor denoise_on_device(const Request& request, const Plan& plan, const DenoiseInputs& inputs,
                           const NoiseSource& noise);
  Tensor unscaled(const Tensor& latents) const;
  std::vector<Image> decode_images(const Request& request, const Plan& plan, const Tensor& latents);
  Tensor predict_flow(const Plan& plan, const DenoiseInputs& batch, const Tensor& latents, float t);
  Tensor predict_trigflow(const DenoiseInputs& batch, const Tensor& latents, float t);

  void limit_memory(const Request& request);  // for one request
  void rest(Stage after);                     // a device's memory back, under a limit

  std::string folder_;
  size_t max_memory_ = 0;
  bool roomy_ = true;                 // all components fit under the limit together
  std::vector<int64_t> limited_for_;  // the size that budgets are for
  Runtime runtime_;
  ModelDefaults defaults_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<TextEncoder> text_encoder_;
  std::unique_ptr<Denoiser> denoiser_;
  std::unique_ptr<DeviceSampler> device_sampler_;  // null on the CPU
  std::unique_ptr<Autoencoder> autoencoder_;
  std::optional<Config> scheduler_config_;
  int64_t instruction_tokens_ = 0;                             // once counted
  std::vector<std::pair<std::string, Conditioning>> prompts_;  // most recent last
};

// The published aspect-ratio bin nearest to height/width for a model of this sample size (16, 32, 64 or 128 latents),
// as {width, height}; the size itself for another sample size.
std::pair<int64_t, int64_t> nearest_bin(int64_t width, int64_t height, int64_t sample_size);

extern const char kComplexHumanInstruction[];

}  // namespace kinora
