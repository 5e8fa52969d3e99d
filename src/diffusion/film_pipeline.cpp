#include "diffusion/film_pipeline.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <utility>

#include "diffusion/video_prompt.h"
#include "io/video.h"
#include "text/tokenizer.h"

namespace kinora {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLargestSide = 8192, kMostFrames = 1 << 14;
constexpr const char *kT5 = "T5", *kClip = "CLIP", *kTransformer = "the transformer";
constexpr const char *kEncoding = "the autoencoder, encoding", *kDecoding = "the autoencoder, decoding";

// The first of `names` in `root` that holds a model.
std::string find_encoder(const fs::path& root, const std::string& what, std::initializer_list<const char*> names) {
  std::error_code ignored;
  for (const char* name : names) {
    if (fs::exists(root / name / "config.json", ignored)) return (root / name).string();
  }
  fail(ErrorKind::io, root.string() + " holds no text encoder " + what + ": " + *names.begin() +
                          "/config.json is missing (with model.safetensors and the tokenizer beside it)");
}

void expect_equal(const std::string& folder, const std::string& first, int64_t a, const std::string& second,
                  int64_t b) {
  if (a == b) return;
  fail(ErrorKind::model, folder + ": " + first + " (" + std::to_string(a) + ") and " + second + " (" +
                             std::to_string(b) + ") differ; these files do not belong together");
}

FilmDefaults read_defaults(const fs::path& root, bool causal) {
  FilmDefaults d;
  if (!causal) d.frames = 128;
  if (!fs::exists(root / "kinora.json")) return d;
  Config json = Config::load((root / "kinora.json").string());
  d.width = json.integer("width", 0, kLargestSide, d.width);
  d.height = json.integer("height", 0, kLargestSide, d.height);
  d.frames = json.integer("frames", 1, kMostFrames, d.frames);
  d.steps = json.integer("steps", 1, 1000, d.steps);
  d.fps = json.integer("fps", 1, 240, d.fps);
  d.motion_score = json.integer("motion_score", 1, 15, d.motion_score);
  d.text_tokens = json.integer("max_sequence_length", 2, 4096, d.text_tokens);
  d.guidance = json.real("guidance", 0, 1000, d.guidance);
  d.image_guidance = json.real("image_guidance", 0, 1000, d.image_guidance);
  return d;
}

Tensor ids_of(const Tokenizer& tokenizer, const std::string& text, int64_t length) {
  std::vector<int32_t> ids = tokenizer.encode_padded(text, static_cast<size_t>(length));
  return Tensor::from({1, length}, ids);
}

void set_tiles(VideoAutoencoder& autoencoder, const FilmRequest& r) {
  autoencoder.tiling = autoencoder.usual_tiling();
  if (r.tile) autoencoder.tiling.size = r.tile;
  if (!r.tile_frames) return;
  autoencoder.tiling.time = true;
  autoencoder.tiling.frames = r.tile_frames;
}

PictureRequest picture_request(const FilmRequest& r) {
  return {.prompt = r.prompt,
          .text = {},
          .width = r.width,
          .height = r.height,
          .resolution = r.picture_resolution,
          .steps = r.steps,
          .seed = r.seed,
          .cuda_noise = r.cuda_noise,
          .on_stage = r.on_stage};
}

void report(const FilmRequest& r, Stage stage, int64_t done, int64_t total) {
  if (r.on_stage) r.on_stage({stage, done, total});
}

}  // namespace

FilmPipeline FilmPipeline::load(const std::string& folder, const LoadOptions& options) {
  return open(folder, options.variant, make_runtime(options), options.max_memory);
}

FilmPipeline FilmPipeline::open(const std::string& folder, const std::string& variant, const Runtime& runtime,
                                size_t max_memory) {
  fs::path root(folder);
  if (!fs::is_directory(root))
    fail(ErrorKind::io, folder + " is no folder; films need one with the published files of Open-Sora 2.0");
  FilmPipeline p;
  p.folder_ = folder;
  p.variant_ = variant;
  p.runtime_ = p.others_ = runtime;
  // Only transformers are run in float16.
  if (p.others_.dtype == DType::f16) p.others_.dtype = p.others_.context.device ? DType::bf16 : DType::f32;
  p.max_memory_ = max_memory;
  if (p.max_memory_ && p.runtime_.context.device) p.runtime_.context.device->limit(p.max_memory_);
  VideoDenoiser denoiser = p.open_denoiser(p.runtime_);
  VideoAutoencoder autoencoder = load_video_autoencoder(folder, p.others_);
  p.t5_folder_ = find_encoder(root, "T5", {"google/t5-v1_1-xxl", "t5"});
  p.clip_folder_ = find_encoder(root, "CLIP", {"openai/clip-vit-large-patch14", "clip"});
  T5Encoder t5 = p.open_t5();
  ClipTextEncoder clip = ClipTextEncoder::load(p.clip_folder_, p.others_, p.variant_);
  load_tokenizer(p.t5_folder_);
  load_tokenizer(p.clip_folder_);

  const MmditConfig& c = denoiser.config();
  expect_equal(folder, "the transformer's latent channels", c.latent_channels(), "the autoencoder's",
               autoencoder.latent_channels());
  expect_equal(folder, "the transformer's context_in_dim", c.text_dim, "T5's d_model", t5.config().d_model);
  expect_equal(folder, "the transformer's vec_in_dim", c.pooled_dim, "CLIP's hidden_size", clip.config().hidden_size);
  p.layout_ = {autoencoder.latent_channels(), autoencoder.time_compression(), autoencoder.space_compression(),
               c.patch_size, autoencoder.causal()};
  p.text_dim_ = c.text_dim;
  p.pooled_dim_ = c.pooled_dim;
  p.defaults_ = read_defaults(root, p.layout_.causal);
  return p;
}

VideoDenoiser FilmPipeline::open_denoiser(const Runtime& runtime) const {
  MmditFiles files = open_mmdit(folder_, MmditRole::film);
  return {files.config, std::move(files.weights), runtime};
}

VideoDenoiser& FilmPipeline::denoiser() {
  if (!denoiser_) denoiser_ = std::make_unique<VideoDenoiser>(open_denoiser(limited(runtime_, kTransformer)));
  return *denoiser_;
}

VideoAutoencoder& FilmPipeline::autoencoder(const FilmRequest& r, bool encoder) {
  if (!autoencoder_) {
    Runtime runtime = limited(others_, encoder ? kEncoding : kDecoding);
    autoencoder_ = std::make_unique<VideoAutoencoder>(load_video_autoencoder(folder_, runtime));
  }
  set_tiles(*autoencoder_, r);
  return *autoencoder_;
}

std::vector<ComponentMemory> FilmPipeline::memory_plan(const FilmRequest& r) const {
  std::vector<ComponentMemory> parts;
  auto add = [&](const char* name, const Graph& graph, const Runtime& runtime, size_t beside) {
    parts.push_back({name, memory_need(graph, *runtime.backend, runtime.context), beside});
  };
  T5Encoder t5 = open_t5();
  add(kT5, t5.graph(1, defaults_.text_tokens), others_, 0);
  ClipTextEncoder clip = ClipTextEncoder::load(clip_folder_, others_, variant_);
  add(kClip, clip.graph(1, clip.config().max_positions), others_, 0);
  if (!r.first_picture.empty() && draws_with_flux(r.first_picture)) {
    for (ComponentMemory& part :
         flux_memory(r.first_picture, picture_request(r), defaults_.text_tokens, runtime_, others_))
      parts.push_back(std::move(part));
  }
  VideoShape shape = shape_of(r);
  VideoAutoencoder autoencoder = load_video_autoencoder(folder_, others_);
  set_tiles(autoencoder, r);
  VideoTaskInfo task = task_of(r);
  if (int64_t given = kinora::reference_frames(task, layout_); given > 0) {
    parts.push_back(autoencoder.need(true, {given, shape.height, shape.width, 3}));
    parts.back().name = kEncoding;
  }
  VideoDenoiser denoiser = open_denoiser(runtime_);
  auto tokens = static_cast<size_t>(shape.tokens() * denoiser.config().in_channels) * 4;
  add(kTransformer, denoiser.graph({1, shape.latent_frames, shape.rows(), shape.columns(), defaults_.text_tokens}),
      runtime_, 8 * tokens);
  parts.push_back(
      autoencoder.need(false, {shape.latent_frames, shape.latent_height, shape.latent_width, layout_.channels}));
  parts.back().name = kDecoding;
  return parts;
}

void FilmPipeline::check_memory(const FilmRequest& r) {
  if (!max_memory_) return;
  std::vector<int64_t> sizes{r.width,           r.height,
                             r.frames,          r.tile,
                             r.tile_frames,     static_cast<int64_t>(task_of(r).task),
                             task_of(r).frames, !r.first_picture.empty()};
  if (sizes == planned_for_) return;
  parts_ = memory_plan(r);
  planned_for_ = sizes;
  for (const ComponentMemory& part : parts_) limited(runtime_, part.name);
}

// A component's runtime: with a budget for its weights where they do not all fit.
Runtime FilmPipeline::limited(const Runtime& runtime, const std::string& name) const {
  Runtime result = runtime;
  if (!max_memory_) return result;
  for (const ComponentMemory& part : parts_) {
    if (part.name != name) continue;
    bool decodes = name == kDecoding || name == kEncoding, text = name == kT5 || name == kClip;
    const char* advice = text      ? ""
                         : decodes ? "--tile, --tile-frames, fewer frames or a smaller size need less"
                                   : "fewer frames, a smaller size or --dtype bfloat16 need less";
    result.context.stream.budget = weights_budget(part, max_memory_, runtime, advice);
  }
  return result;
}

void FilmPipeline::keep_open(bool keep) {
  keep_open_ = keep;
  if (!keep) close();
}

void FilmPipeline::close() {
  if (!keep_open_ || max_memory_) {
    denoiser_.reset();
    autoencoder_.reset();
  }
  runtime_.context.arena->release();  // shared with others_
}

// Flux reads the prompt as it is.
std::vector<std::string> FilmPipeline::texts_of(const FilmRequest& r) const {
  std::vector<std::string> texts{video_prompt(r.prompt, r.fps, r.motion_score), r.negative_prompt};
  if (!r.first_picture.empty() && draws_with_flux(r.first_picture)) texts.push_back(r.prompt);
  return texts;
}

void FilmPipeline::draw_picture(FilmRequest& r) {
  PictureRequest picture = picture_request(r);
  std::vector<VideoText> texts = encode_texts(texts_of(r));
  if (texts.size() > 2) picture.text = texts[2];
  denoiser_.reset();  // not together with the model that draws
  autoencoder_.reset();
  r.first = draw_first_picture(r.first_picture, picture, runtime_, others_, max_memory_);
  r.first_picture.clear();
}

std::vector<VideoText> FilmPipeline::encode_texts(const std::vector<std::string>& texts) {
  using Texts = std::vector<std::pair<std::string, VideoText>>;
  auto find = [](Texts& in, const std::string& text) {
    return std::find_if(in.begin(), in.end(), [&](const auto& entry) { return entry.first == text; });
  };
  Texts fresh;
  for (const std::string& text : texts) {
    auto known = find(texts_, text);
    if (known != texts_.end()) std::rotate(known, known + 1, texts_.end());  // used last
    if (known == texts_.end() && find(fresh, text) == fresh.end()) fresh.push_back({text, {}});
  }
  if (!fresh.empty()) {
    denoiser_.reset();  // not together with the encoders
    autoencoder_.reset();
    close();
    {
      std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(t5_folder_);
      T5Encoder encoder = T5Encoder::load(t5_folder_, limited(others_, kT5), variant_);
      for (auto& [text, result] : fresh) {
        Tensor ids = ids_of(*tokenizer, text, defaults_.text_tokens);
        if (observer_.text) observer_.text(ids);
        result.hidden = encoder.encode(ids);
      }
    }
    close();
    {
      std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(clip_folder_);
      ClipTextEncoder encoder = ClipTextEncoder::load(clip_folder_, limited(others_, kClip), variant_);
      for (auto& [text, result] : fresh)
        result.pooled = encoder.encode(ids_of(*tokenizer, text, encoder.config().max_positions)).pooled;
    }
    close();
  }
  texts_.insert(texts_.end(), fresh.begin(), fresh.end());
  std::vector<VideoText> results;
  for (const std::string& text : texts) results.push_back(find(texts_, text)->second);
  if (texts_.size() > kRememberedTexts)
    texts_.erase(texts_.begin(), texts_.end() - static_cast<std::ptrdiff_t>(kRememberedTexts));
  return results;
}

// The mode of the posterior, so that what is given comes without noise of its own.
std::vector<Tensor> FilmPipeline::encode_references(const FilmRequest& r, const VideoShape& shape) {
  std::vector<Tensor> latents;
  const std::vector<Image>& film = r.head.empty() ? r.tail : r.head;
  if (!r.first && !r.last && film.empty()) return latents;
  auto width = static_cast<int>(shape.width), height = static_cast<int>(shape.height);
  VideoAutoencoder& open = autoencoder(r, true);
  auto encode = [&](const Tensor& frames) {
    Tensor z = open.encode(frames);
    latents.push_back(z.reshaped({1, z.shape()[0], z.shape()[1], z.shape()[2], z.shape()[3]}));
  };
  if (!film.empty()) encode(fill_crop_frames(film, width, height));
  for (const std::optional<Image>* picture : {&r.first, &r.last}) {
    if (*picture) encode(to_tensor(fill_crop(**picture, width, height)));
  }
  close();
  return latents;
}

// One run of the sampler: the whole film, or the draft or the refinement of one.
struct FilmPipeline::Part {
  VideoShape shape;
  double flow_shift;
  Tensor draft;  // latents, unpacked, of a smaller film that is to be refined
};

// Returns latents, unpacked.
Tensor FilmPipeline::denoise(const FilmRequest& r, const Part& part, const std::vector<VideoText>& texts,
                             const std::vector<Tensor>& references, FilmResult& result) {
  const VideoShape& shape = part.shape;
  VideoTaskInfo task = task_of(r);
  VideoSampleOptions options;
  options.levels = flow_levels(r.steps, part.flow_shift);
  bool given = r.noise.defined() && !part.draft.defined();
  Tensor latents = given ? r.noise.to(DType::f32).permuted({0, 2, 3, 4, 1})
                         : video_noise(shape, r.seed, r.cuda_noise ? NoiseKind::cuda : NoiseKind::cpu);
  if (!part.draft.defined()) result.noise = latents.permuted({0, 4, 1, 2, 3});
  if (part.draft.defined()) {
    options.first_step = first_step_at(options.levels, r.refine_strength);
    Tensor enlarged = resize_latents(part.draft, shape.latent_height, shape.latent_width);
    latents = add_flow_noise(enlarged, latents, options.levels[options.first_step]);
  }
  VideoSampleInputs in;
  in.latents = pack_latents(latents, layout_.patch);
  in.prompt = texts[0];
  in.negative = texts[1];
  in.condition = video_condition(task, shape, references);
  in.positions = MmditPositions::grid(shape.latent_frames, shape.rows(), shape.columns());
  in.positions.frames = positions_of(r, shape);
  options.guidance =
      guidance_steps({.text = r.guidance, .image = r.image_guidance}, r.steps, shape.latent_frames, in.condition);
  options.skip = r.skip;
  options.on_step = [&](const VideoStepReport& step) {
    report(r, Stage::denoise, step.step, step.steps);
    if (!r.on_preview) return;
    Tensor clean = unpack_latents(step.clean(), shape);
    const Shape& s = clean.shape();
    r.on_preview(
        preview_strip(*colours_, clean.reshaped({s[1], s[2], s[3], s[4]}), 5, static_cast<int>(layout_.spatial)));
  };
  report(r, Stage::denoise, 0, r.steps - static_cast<int64_t>(options.first_step));
  denoiser().observe(observer_.transformer);
  VideoSample sample = sample_film(denoiser(), in, options);
  close();
  result.forwards += sample.forwards;
  Tensor clean = unpack_latents(sample.latents, shape);
  restore_pictures(clean, task.task, references);
  return clean;
}

FilmResult FilmPipeline::sample(const FilmRequest& request) {
  FilmRequest r = complete(request);
  check_memory(r);
  FilmResult result;
  auto before = std::chrono::steady_clock::now();
  auto lap = [&] {
    auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(before, now)).count();
  };
  report(r, Stage::encode, 0, 1);
  std::vector<VideoText> texts = encode_texts(texts_of(r));
  result.times.encode = lap();
  if (!r.first_picture.empty()) {
    draw_picture(r);
    result.times.picture = lap();
  }
  if (r.on_preview && !colours_) {
    colours_ = LatentColours::fit(autoencoder(r, true));
    close();
  }
  Part whole{shape_of(r), r.flow_shift, {}};
  std::vector<Tensor> references = encode_references(r, whole.shape), draft_references;
  if (r.from_width) draft_references = encode_references(r, draft_shape_of(r));
  report(r, Stage::encode, 1, 1);
  result.times.encode += lap();
  if (r.from_width) {
    whole.draft = denoise(r, {draft_shape_of(r), r.from_flow_shift, {}}, texts, draft_references, result);
    result.times.draft = lap();
  }
  Tensor latents = denoise(r, whole, texts, references, result);
  const Shape& s = latents.shape();
  result.latents = latents.reshaped({s[1], s[2], s[3], s[4]});
  result.times.denoise = lap();
  return result;
}

FilmResult FilmPipeline::generate(const FilmRequest& r, const FrameSink& sink) {
  FilmResult result = sample(r);
  auto before = std::chrono::steady_clock::now();
  report(r, Stage::decode, 0, 1);
  autoencoder(r, false).decode(result.latents, sink,
                               [&](int64_t done, int64_t total) { report(r, Stage::decode, done, total); });
  close();
  result.times.decode = std::chrono::duration<double>(std::chrono::steady_clock::now() - before).count();
  return result;
}

}  // namespace kinora
