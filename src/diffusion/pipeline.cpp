#include "diffusion/pipeline.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "core/log.h"
#include "core/rng.h"
#include "diffusion/finite.h"
#include "diffusion/pipeline_plan.h"
#include "diffusion/prompt.h"
#include "diffusion/video_latents.h"
#include "io/safetensors.h"

namespace kinora {
namespace {

namespace fs = std::filesystem;

constexpr size_t kRememberedPrompts = 16;
constexpr int64_t kLargestSide = 8192;

void expect_class(const Config& index, const std::string& component, const std::string& expected) {
  std::string given = index.class_name(component);
  if (given != expected) {
    fail(ErrorKind::model,
         index.name() + ": " + component + " is \"" + given + "\", but this version runs " + expected);
  }
}

ModelDefaults read_defaults(const fs::path& root, const SanaConfig& sana, const DcAeConfig& vae) {
  ModelDefaults d;
  d.width = d.height = sana.sample_size * vae.compression();
  d.steps = sana.guidance_embeds ? 2 : 20;
  if (!fs::exists(root / "kinora.json")) return d;
  Config json = Config::load((root / "kinora.json").string());
  d.width = json.integer("width", 1, kLargestSide, d.width);
  d.height = json.integer("height", 1, kLargestSide, d.height);
  d.steps = json.integer("steps", 1, 1000, d.steps);
  d.guidance = json.real("guidance", 0, 1000, d.guidance);
  d.max_sequence_length = json.integer("max_sequence_length", 2, 4096, d.max_sequence_length);
  d.complex_human_instruction = json.boolean("complex_human_instruction", d.complex_human_instruction);
  d.use_resolution_binning = json.boolean("use_resolution_binning", d.use_resolution_binning);
  return d;
}

// [1, ..] -> [times, ..]
Tensor repeat_rows(const Tensor& row, int64_t times) {
  std::vector<Tensor> rows(static_cast<size_t>(times), row);
  return concat_rows(rows);
}

std::string seconds_since(std::chrono::steady_clock::time_point start) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f",
                std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return text;
}

}  // namespace

Runtime make_runtime(const LoadOptions& options) {
  Quantization quantization = parse_quantization(options.quantize, options.quantize_layers);
  Runtime runtime = make_runtime(options.device, options.dtype, options.threads, options.stop, options.attention);
  runtime.quantization = std::move(quantization);
  return runtime;
}

Pipeline Pipeline::load(const std::string& folder, const LoadOptions& options) {
  if (!fs::is_directory(folder))
    fail(ErrorKind::io, folder + " is no folder; --model takes the folder of a diffusers checkpoint");
  return open(folder, options.variant, make_runtime(options), options.max_memory);
}

Pipeline Pipeline::open(const std::string& folder, const std::string& variant, const Runtime& runtime,
                        size_t max_memory) {
  auto start = std::chrono::steady_clock::now();
  fs::path root(folder);
  Config index = Config::load((root / "model_index.json").string());
  expect_class(index, "transformer", "SanaTransformer2DModel");
  expect_class(index, "vae", "AutoencoderDC");
  if (index.class_name("text_encoder") != "Gemma2ForCausalLM") expect_class(index, "text_encoder", "Gemma2Model");

  Pipeline p;
  p.folder_ = folder;
  p.runtime_ = runtime;
  p.max_memory_ = max_memory;
  if (max_memory && runtime.context.device) runtime.context.device->limit(max_memory);
  auto config = [&](const char* part) { return Config::load((root / part / "config.json").string()); };

  SanaConfig sana = read_sana_config(config("transformer"));
  Weights sana_weights = open_weights((root / "transformer").string(), "diffusion_pytorch_model", variant);
  const Tensor* probe = sana_weights.find("proj_out.weight");
  sana.fp16_clamp = p.runtime_.dtype == DType::f16 || (probe && probe->dtype() == DType::f16);
  Runtime others = p.runtime_;  // only the transformer was trained to bear float16
  if (others.dtype == DType::f16) others.dtype = others.context.device ? DType::bf16 : DType::f32;
  DcAeConfig vae = read_dc_ae_config(config("vae"));
  Gemma2Config gemma = read_gemma2_config(config("text_encoder"));
  if (vae.latent_channels != sana.in_channels) {
    fail(ErrorKind::model, folder + ": the autoencoder has " + std::to_string(vae.latent_channels) +
                               " latent channels, the transformer " + std::to_string(sana.in_channels));
  }
  if (gemma.hidden_size != sana.caption_channels) {
    fail(ErrorKind::model, folder + ": the text encoder's hidden_size and the transformer's caption_channels differ");
  }
  p.defaults_ = read_defaults(root, sana, vae);
  p.denoiser_ = std::make_unique<Denoiser>(sana, std::move(sana_weights), p.runtime_);
  if (p.runtime_.context.device) p.device_sampler_ = std::make_unique<DeviceSampler>(*p.denoiser_);
  p.autoencoder_ = std::make_unique<Autoencoder>(
      vae, open_weights((root / "vae").string(), "diffusion_pytorch_model", variant), others);
  p.text_encoder_ =
      std::make_unique<TextEncoder>(gemma, open_weights((root / "text_encoder").string(), "model", variant), others);
  // A component may be published without the variant, but not all of them.
  auto is_variant = [&](const Weights& w) {
    return fs::path(w.source()).filename().string().find("." + variant + ".") != std::string::npos;
  };
  if (!variant.empty() && !is_variant(p.denoiser_->weights()) && !is_variant(p.autoencoder_->weights()) &&
      !is_variant(p.text_encoder_->weights())) {
    fail(ErrorKind::io,
         "no weights of the variant '" + variant + "' in " + folder + "; leave --variant out to take the plain ones");
  }
  p.tokenizer_ = load_tokenizer((root / "tokenizer").string());
  p.scheduler_config_ = Config::load((root / "scheduler" / "scheduler_config.json").string());
  make_scheduler(*p.scheduler_config_);  // refuses what it does not know now rather than after the prompt
  log(LogLevel::info, "opened " + folder + " in " + seconds_since(start) + " s");
  return p;
}

const Conditioning& Pipeline::encode_prompt(const std::string& prompt, bool negative) {
  std::string text = preprocess_prompt(prompt);
  std::string instruction = !negative && defaults_.complex_human_instruction ? kComplexHumanInstruction : "";
  std::string key = instruction + text;
  for (const auto& [known, conditioning] : prompts_) {
    if (known == key) return conditioning;
  }
  int64_t keep = defaults_.max_sequence_length, length = keep;
  if (!instruction.empty()) {
    if (!instruction_tokens_) instruction_tokens_ = static_cast<int64_t>(tokenizer_->encode(instruction).size());
    length += instruction_tokens_ - 2;
  }
  std::vector<int32_t> ids = tokenizer_->encode(key);
  if (static_cast<int64_t>(ids.size()) > length) ids.resize(static_cast<size_t>(length));
  // Nothing behind the last token matters to those before it, so padding is not computed: its rows stay zero, and the
  // mask hides them from the transformer.
  auto used = static_cast<int64_t>(ids.size());
  for (int32_t id : ids) {
    if (id < 0 || id >= text_encoder_->config().vocab_size) {
      fail(ErrorKind::model,
           folder_ + ": the tokenizer gives id " + std::to_string(id) + ", beyond the text encoder's vocabulary");
    }
  }
  std::vector<float> ones(ids.size(), 1);
  auto start = std::chrono::steady_clock::now();
  Tensor hidden = text_encoder_->encode(Tensor::from({1, used}, ids), Tensor::from({1, used}, ones),
                                        device_sampler_ ? Keep::on_device : Keep::on_host);
  log(LogLevel::info, "encoded " + std::to_string(used) + " tokens of a prompt in " + seconds_since(start) + " s");
  // On a device the check waits until something comes back from it.
  if (!hidden.on_device()) check_finite(hidden, "the text encoder");
  Conditioning c{place_hidden(hidden, used, length), Tensor::zeros({1, keep})};
  for (int64_t i = 0; i < keep; ++i) {
    if (i == 0 || length - keep + i < used) c.mask.data<float>()[i] = 1;
  }
  if (prompts_.size() >= kRememberedPrompts) prompts_.erase(prompts_.begin());
  prompts_.emplace_back(std::move(key), std::move(c));
  return prompts_.back().second;
}

// Of the hidden states of `used` tokens: the first, then the last max_sequence_length - 1 of `length`, zeros where
// there is no token.
Tensor Pipeline::place_hidden(const Tensor& hidden, int64_t used, int64_t length) const {
  int64_t keep = defaults_.max_sequence_length, first = length - keep + 1, count = std::max<int64_t>(used - first, 0);
  Tensor head = hidden.reshaped({used, hidden.shape()[2]}).rows(0, 1);
  Shape shape{1, keep, hidden.shape()[2]};
  size_t row = head.bytes();
  auto place = [&](std::byte* to, const auto& copy) {
    copy(to, head.raw(), row);
    if (count)
      copy(to + row, static_cast<const std::byte*>(hidden.raw()) + static_cast<size_t>(first) * row,
           static_cast<size_t>(count) * row);
  };
  if (!hidden.on_device()) {
    Tensor result = Tensor::zeros(shape);
    place(static_cast<std::byte*>(result.raw()),
          [](void* to, const void* from, size_t n) { std::memcpy(to, from, n); });
    return result;
  }
  Device& device = *runtime_.context.device;
  std::shared_ptr<void> memory = device.allocate(static_cast<size_t>(keep) * row);
  device.clear(memory.get(), static_cast<size_t>(keep) * row);
  place(static_cast<std::byte*>(memory.get()), [&](void* to, const void* from, size_t n) { device.copy(to, from, n); });
  return Tensor(shape, DType::f32, memory, memory.get(), Place::device);
}

// Of the request's own picture, or of its draft of another size.
Pipeline::Plan Pipeline::plan(const Request& r, std::optional<Size> draft) const {
  Plan p;
  int64_t ratio = autoencoder_->config().compression(), patch = denoiser_->config().patch_size;
  p.out_width = r.width ? r.width : defaults_.width;
  p.out_height = r.height ? r.height : defaults_.height;
  for (int64_t side : {p.out_width, p.out_height}) {
    if (side < ratio || side > kLargestSide) {
      fail(ErrorKind::usage, "width and height must be from " + std::to_string(ratio) + " to " +
                                 std::to_string(kLargestSide) + ", not " + std::to_string(p.out_width) + "x" +
                                 std::to_string(p.out_height));
    }
  }
  std::tie(p.width, p.height) = std::pair(p.out_width, p.out_height);
  if (defaults_.use_resolution_binning)
    std::tie(p.width, p.height) = nearest_bin(p.out_width, p.out_height, denoiser_->config().sample_size);
  if (draft) std::tie(p.width, p.height) = *draft;
  if (p.width % (ratio * patch) != 0 || p.height % (ratio * patch) != 0) {
    fail(ErrorKind::usage, "width and height must be multiples of " + std::to_string(ratio * patch) +
                               " for this model, not " + std::to_string(p.width) + "x" + std::to_string(p.height));
  }
  p.batch = static_cast<int64_t>(r.seeds.size());
  if (p.batch < 1 || p.batch > 64)
    fail(ErrorKind::usage, "a batch holds 1 to 64 pictures, not " + std::to_string(p.batch));
  p.h = p.height / ratio;
  p.w = p.width / ratio;
  p.channels = denoiser_->config().in_channels;
  p.guidance = r.guidance < 0 ? defaults_.guidance : r.guidance;
  if (!(p.guidance <= 1000)) fail(ErrorKind::usage, "guidance must be from 0 to 1000");
  p.guided = !sprint() && p.guidance > 1;

  p.scheduler = make_scheduler(*scheduler_config_, r.scheduler);
  if (p.scheduler->trigflow() != sprint()) {
    fail(ErrorKind::usage,
         sprint() ? "Sana-Sprint models need the scm scheduler" : "the scm scheduler is for Sana-Sprint models only");
  }
  int64_t steps = r.steps ? r.steps : defaults_.steps;
  p.scheduler->set_steps(steps);
  bool refines = !r.from_resolution.empty() && !draft;
  if (refines) {
    if (!(r.refine_strength > 0 && r.refine_strength <= 1))
      fail(ErrorKind::usage, "the strength must be above 0 and at most 1");
    while (static_cast<int64_t>(p.first_step) + 1 < steps &&
           p.scheduler->noise_level(p.first_step) > static_cast<float>(r.refine_strength))
      ++p.first_step;
    p.scheduler->begin(p.first_step);
  } else if (r.init_image) {
    if (!(r.strength >= 0 && r.strength <= 1)) fail(ErrorKind::usage, "strength must be from 0 to 1");
    double wanted = std::min(static_cast<double>(steps) * r.strength, static_cast<double>(steps));
    p.first_step = static_cast<size_t>(std::max(static_cast<double>(steps) - wanted, 0.0));
    if (static_cast<int64_t>(p.first_step) >= steps) {
      fail(ErrorKind::usage,
           "strength is so low that no step of " + std::to_string(steps) + " is left; raise strength or steps");
    }
    p.scheduler->begin(p.first_step);
  }
  return p;
}

std::vector<ComponentMemory> Pipeline::memory_plan(const Request& r) const {
  Plan p = plan(r);
  auto need = [&](const Graph& graph) { return memory_need(graph, *runtime_.backend, runtime_.context); };
  int64_t tokens = defaults_.max_sequence_length, pixels = p.batch * p.width * p.height;
  if (defaults_.complex_human_instruction)
    tokens += static_cast<int64_t>(tokenizer_->encode(kComplexHumanInstruction).size());
  int64_t ratio = autoencoder_->config().compression(), h = p.h, w = p.w;
  if (r.tiling) {
    h = std::min(h, r.tiling->size / ratio);
    w = std::min(w, r.tiling->size / ratio);
  }
  auto floats = static_cast<size_t>(pixels) * 3 * 4;
  return {{"the text encoder", need(text_encoder_->graph(1, tokens)), 0},
          {"the transformer",
           need(denoiser_->graph(p.batch * (p.guided ? 2 : 1), p.h, p.w, defaults_.max_sequence_length)), 0},
          {"the autoencoder", need(autoencoder_->graph(false, {1, h, w, p.channels})), floats * (p.batch > 1 ? 3 : 2)}};
}

// Budgets are those of the first request and hold for others of its size; a larger one has them made again.
void Pipeline::limit_memory(const Request& r) {
  if (!max_memory_) return;
  Plan p = plan(r);
  std::vector<int64_t> size{p.batch, p.width, p.height, r.tiling ? r.tiling->size : 0};
  if (size == limited_for_) return;
  denoiser_->stream_weights(0);
  autoencoder_->stream_weights(0);
  text_encoder_->stream_weights(0);
  if (device_sampler_) device_sampler_->close();
  runtime_.context.arena->release();
  const char* advice = "a smaller size, --tile, --batch 1 or --dtype bfloat16 need less";
  std::vector<ComponentMemory> parts = memory_plan(r);
  size_t all = 0, working = 0;
  for (const ComponentMemory& part : parts) {
    all += part.need.weights;
    working = std::max(working, part.need.working + part.beside);
  }
  roomy_ = memory_in_use(runtime_) + all + working <= max_memory_;
  if (!roomy_) {  // packed weights cannot come and go
    denoiser_->stream_weights(1);
    autoencoder_->stream_weights(1);
    std::vector<ComponentMemory> bare = memory_plan(r);
    for (size_t i = 0; i < parts.size(); ++i) {
      parts[i].need.least_weights = bare[i].need.least_weights;
      parts[i].need.streamed_working = bare[i].need.streamed_working;
    }
  }
  text_encoder_->stream_weights(weights_budget(parts[0], max_memory_, runtime_, ""));
  denoiser_->stream_weights(weights_budget(parts[1], max_memory_, runtime_, advice));
  autoencoder_->stream_weights(weights_budget(parts[2], max_memory_, runtime_, advice));
  limited_for_ = size;
}

void Pipeline::rest(Stage after) {
  if (!max_memory_ || roomy_) return;
  if (after == Stage::encode) text_encoder_->close();
  if (after == Stage::denoise) denoiser_->close();
  if (after == Stage::denoise && device_sampler_) device_sampler_->close();
  if (after == Stage::decode) autoencoder_->close();
  runtime_.context.arena->release();
}

Pipeline::Plan Pipeline::draft_plan(const Request& r, const Plan& whole) const {
  int64_t cell = autoencoder_->config().compression() * denoiser_->config().patch_size;
  return plan(r, draft_size(r.from_resolution, whole.width, whole.height, cell));
}

void Pipeline::check(const Request& r) const {
  Plan p = plan(r);
  if (!r.from_resolution.empty()) p = draft_plan(r, p);
  if (r.latents) expect_shape_of(*r.latents, Shape{p.batch, p.channels, p.h, p.w});
}

Tensor Pipeline::initial_latents(const Request& r, const Plan& p, std::vector<NoiseSource>& sources) const {
  Shape each{1, p.channels, p.h, p.w};  // torch's order, so that the noise is torch's
  for (uint64_t seed : r.seeds) {
    if (r.cuda_noise) {
      auto generator = std::make_shared<PhiloxGenerator>(seed);
      sources.push_back([generator](const Shape& shape) { return generator->randn(shape); });
    } else {
      auto generator = std::make_shared<CpuGenerator>(seed);
      sources.push_back([generator](const Shape& shape) { return generator->randn(shape); });
    }
  }
  if (r.latents) {
    expect_shape_of(*r.latents, Shape{p.batch, p.channels, p.h, p.w});
    return r.latents->to(DType::f32).clone();
  }
  std::vector<Tensor> noise;
  for (NoiseSource& source : sources) noise.push_back(source(each));
  return concat_rows(noise);
}

// On the host, as the autoencoder has them.
Tensor Pipeline::unscaled(const Tensor& where) const {
  Tensor latents = where.on_device() ? runtime_.context.device->to_host(where) : where;
  Tensor scaled(latents.shape(), DType::f32);
  auto factor = static_cast<float>(autoencoder_->config().scaling_factor);
  for (int64_t i = 0; i < scaled.numel(); ++i) scaled.data<float>()[i] = latents.data<float>()[i] / factor;
  return scaled;
}

Tensor Pipeline::decode(const Tensor& where, std::optional<Tiling> tiling, const TileReport& on_tile) {
  Tensor picture = autoencoder_->decode(unscaled(where), tiling, on_tile);
  check_finite(picture, "the autoencoder");
  return picture;
}

std::vector<Image> Pipeline::decode_images(const Request& r, const Plan& p, const Tensor& latents) {
  auto report = [&](int64_t done, int64_t total) {
    if (r.on_stage) r.on_stage({Stage::decode, done, total});
  };
  std::vector<Image> images;
  bool tiled = r.tiling && (p.width > r.tiling->size || p.height > r.tiling->size);
  bool resized = p.width != p.out_width || p.height != p.out_height;
  if (device_sampler_ && !tiled && !resized) {  // a quarter of the bytes to bring back
    Tensor scaled = unscaled(latents);
    report(0, p.batch);
    for (int64_t i = 0; i < p.batch; ++i) {
      Tensor bytes = autoencoder_->decode_bytes(scaled.rows(i, i + 1));
      images.push_back({static_cast<int>(p.width), static_cast<int>(p.height), {}});
      images.back().rgb.assign(bytes.data<uint8_t>(), bytes.data<uint8_t>() + bytes.numel());
      report(i + 1, p.batch);
    }
    return images;
  }
  Tensor picture = decode(latents, r.tiling, report);
  if (resized) picture = resize_and_crop(picture, p.out_width, p.out_height);
  for (int64_t i = 0; i < p.batch; ++i) images.push_back(to_image(picture, i));
  return images;
}

// From noise, or from the picture given.
Tensor Pipeline::draw(const Request& r, const Plan& p, Result& result) {
  std::vector<NoiseSource> sources;
  Tensor clean;
  if (r.init_image) {
    Image fitted = resize_lanczos(*r.init_image, static_cast<int>(p.width), static_cast<int>(p.height));
    clean = autoencoder_->encode(to_tensor(fitted), r.tiling);
    auto factor = static_cast<float>(autoencoder_->config().scaling_factor);
    for (int64_t i = 0; i < clean.numel(); ++i) clean.data<float>()[i] *= factor;
  }
  result.initial_latents = initial_latents(r, p, sources);
  Tensor latents = result.initial_latents.permuted({0, 2, 3, 1});
  if (r.init_image) {
    latents = p.scheduler->add_noise(repeat_rows(clean, p.batch), latents, p.first_step);
  } else if (sprint()) {
    for (int64_t i = 0; i < latents.numel(); ++i) latents.data<float>()[i] *= kSigmaData;
  }
  return denoise(r, p, latents, sources);
}

// draft [batch, h, w, C], of another size.
Tensor Pipeline::refine(const Request& r, const Plan& p, const Tensor& draft) {
  const Shape& s = draft.shape();
  Tensor enlarged = resize_latents(draft.reshaped({s[0], 1, s[1], s[2], s[3]}), p.h, p.w);
  Request own = r;
  own.latents.reset();  // noise that was given is the draft's
  std::vector<NoiseSource> sources;
  Tensor noise = initial_latents(own, p, sources).permuted({0, 2, 3, 1});
  enlarged = enlarged.reshaped(noise.shape());
  return denoise(r, p, p.scheduler->add_noise(enlarged, noise, p.first_step), sources);
}

Result Pipeline::generate(const Request& r) {
  limit_memory(r);
  Plan p = plan(r);
  auto report = [&](Stage stage, int64_t done, int64_t total) {
    if (r.on_stage) r.on_stage({stage, done, total});
  };
  report(Stage::encode, 0, p.guided ? 2 : 1);
  p.positive = encode_prompt(r.prompt, false);
  report(Stage::encode, 1, p.guided ? 2 : 1);
  if (p.guided) {
    p.negative = encode_prompt(r.negative_prompt, true);
    report(Stage::encode, 2, 2);
  }
  rest(Stage::encode);

  Result result;
  auto start = std::chrono::steady_clock::now();
  auto spent = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  Tensor latents;
  if (r.from_resolution.empty()) {
    latents = draw(r, p, result);
  } else {
    Plan small = draft_plan(r, p);
    small.positive = p.positive;
    small.negative = p.negative;
    latents = draw(r, small, result);
    result.draft_seconds = spent();
    latents = refine(r, p, latents);
  }
  result.seconds = spent() - result.draft_seconds;
  rest(Stage::denoise);
  result.images = decode_images(r, p, latents);
  rest(Stage::decode);
  result.latents = latents.permuted({0, 3, 1, 2});
  result.width = p.out_width;
  result.height = p.out_height;
  result.steps = r.steps ? r.steps : defaults_.steps;
  result.guidance = p.guidance;
  result.scheduler = p.scheduler->name();
  result.device = device_name(runtime_);
  result.dtype = dtype_name(runtime_);
  return result;
}

}  // namespace kinora
