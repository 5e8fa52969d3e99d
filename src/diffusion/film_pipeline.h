// Text, and perhaps pictures, to film with the published files of Open-Sora 2.0: T5, CLIP, the transformer and the
// autoencoder, one after another. Each is opened when it is needed and gone before the next, so that the most memory
// needed is that of the largest.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "diffusion/film_preview.h"
#include "diffusion/first_picture.h"
#include "diffusion/pipeline.h"
#include "diffusion/text_encoders.h"
#include "diffusion/video_autoencoder.h"
#include "diffusion/video_denoiser.h"
#include "diffusion/video_sampler.h"

namespace kinora {

// What a folder asks for where a request is silent. From kinora.json when the folder has one, else as the reference.
struct FilmDefaults {
  int64_t width = 0, height = 0;  // 0: those of 256px, 16:9
  int64_t frames = 129, steps = 50, fps = 24, motion_score = 4;
  int64_t text_tokens = 512;  // that T5 reads; padding counts
  double guidance = 7.5, image_guidance = 3;
};

// Where a number is 0, or a strength negative, the model's default stands.
struct FilmRequest {
  std::string prompt, negative_prompt;
  std::string resolution, aspect;  // "256px" and "16:9", as named_size; or
  int64_t width = 0, height = 0;   // pixels
  int64_t frames = 0, steps = 0;
  int64_t fps = 0, motion_score = 0;  // told to the model after the prompt
  double guidance = -1, image_guidance = -1;
  double flow_shift = -1;  // negative: that of the size and the number of frames
  // Progressive: made at the size of `from_resolution` (as draft_size) first, then its latents are enlarged, given
  // noise of level `refine_strength` and refined.
  std::string from_resolution;
  int64_t from_width = 0, from_height = 0;  // or pixels
  double from_flow_shift = -1;              // of the first part; negative: flow_shift if given, else that of its size
  double refine_strength = 0.8;
  uint64_t seed = 0;
  bool cuda_noise = false;           // torch's CUDA generator, rounded to bfloat16, instead of its CPU generator
  Tensor noise;                      // [1, C, t, h, w] instead of the seed's; of a draft when there is one
  bool skip = true;                  // see VideoSampleOptions
  std::optional<Image> first, last;  // pictures that the film is to begin and to end with
  // Or the folder of a model that draws the first one from the prompt, and its size, as PictureRequest::resolution.
  std::string first_picture, picture_resolution;
  std::vector<Image> head, tail;  // or the frames of a film, as many as reference_frames() says (not both, no pictures)
  std::string times = "uniform";  // "uniform", "adaptive" or a file for parse_positions
  std::vector<double> key_frames;     // of "adaptive"
  int64_t tile = 0, tile_frames = 0;  // pixels and frames decoded at once; 0: as the reference
  std::function<void(const StageReport&)> on_stage;
  std::function<void(const Image&)> on_preview;  // after each step: some frames of the film expected, as preview_strip
};

// Seconds.
struct FilmTimes {
  double encode = 0, picture = 0, draft = 0, denoise = 0, decode = 0;  // draft: the small film, when there is one
};

struct FilmResult {
  Tensor latents;        // [t, h, w, C] f32, scaled, as decoded
  Tensor noise;          // [1, C, t, h, w] f32, that it began with
  int64_t forwards = 0;  // runs of the transformer
  FilmTimes times;
};

// Called with what components are given, before each run; empty: not called.
struct FilmObserver {
  std::function<void(const Tensor& ids)> text;  // T5, [1, tokens] i32
  std::function<void(const VideoModelInputs&)> transformer;
};

class FilmPipeline {
 public:
  // A folder with Open_Sora_v2.safetensors and hunyuan_vae.safetensors, or the pair Open_Sora_v2_Video_DC_AE and
  // F32T4C128_AE, and the folders google/t5-v1_1-xxl and openai/clip-vit-large-patch14 (or t5 and clip). Every name and
  // shape is checked, nothing is read yet. Throws Error(io) naming what is missing, Error(model) for what does not fit.
  static FilmPipeline load(const std::string& folder, const LoadOptions& options = {});
  // With a session's runtime, and a limit of memory as LoadOptions has it.
  static FilmPipeline open(const std::string& folder, const std::string& variant, const Runtime& runtime,
                           size_t max_memory = 0);

  // The request with every default filled in, and checked. Throws Error(usage).
  FilmRequest complete(FilmRequest request) const;
  // Makes a film; its frames go to `sink` in order, [n, height, width, 3] f32, as the autoencoder gives them out.
  FilmResult generate(const FilmRequest& request, const FrameSink& sink);
  // All but the last part of that: its latents, not decoded.
  FilmResult sample(const FilmRequest& request);
  void observe(FilmObserver observer) { observer_ = std::move(observer); }

  // T5's and CLIP's results for texts that go to both as they are. As many as kRememberedTexts are remembered, those
  // used last: texts of several films are encoded together by asking for them first.
  std::vector<VideoText> encode_texts(const std::vector<std::string>& texts);
  static constexpr size_t kRememberedTexts = 16;
  // The texts that a completed request needs.
  std::vector<std::string> texts_of(const FilmRequest& request) const;
  // What the parts of a completed request take, one after another.
  std::vector<ComponentMemory> memory_plan(const FilmRequest& request) const;
  // Throws Error(resource), saying what is needed and what would need less, when a limit of memory does not allow it.
  void check_memory(const FilmRequest& request);
  // For several films: the transformer and the autoencoder stay open from one to the next, until texts must be encoded.
  void keep_open(bool keep);
  // Frames of a film that is given, of 33 or 65 as the reference counts them: one fewer if the model is not causal.
  int64_t reference_frames(int64_t frames) const { return layout_.causal ? frames : frames - 1; }
  void forget_texts() { texts_.clear(); }
  // The transformer that films are made with, opened unless it is; T5, opened once more.
  VideoDenoiser& denoiser();
  T5Encoder open_t5() const { return T5Encoder::load(t5_folder_, others_, variant_); }
  const std::string& folder() const { return folder_; }
  const std::string& t5_folder() const { return t5_folder_; }
  const std::string& clip_folder() const { return clip_folder_; }
  const FilmDefaults& defaults() const { return defaults_; }
  const VideoLayout& layout() const { return layout_; }
  const Runtime& runtime() const { return runtime_; }

 private:
  FilmPipeline() = default;
  VideoTaskInfo task_of(const FilmRequest& request) const;
  VideoShape shape_of(const FilmRequest& request) const;
  VideoDenoiser open_denoiser(const Runtime& runtime) const;
  VideoAutoencoder& autoencoder(const FilmRequest& request, bool encoder);
  Runtime limited(const Runtime& runtime, const std::string& part) const;
  void close();  // what is open and need not stay
  void draw_picture(FilmRequest& request);
  VideoShape draft_shape_of(const FilmRequest& request) const;
  std::vector<double> positions_of(const FilmRequest& request, const VideoShape& shape) const;  // of frames, in time
  void complete_picture(FilmRequest& request) const;
  void complete_draft(FilmRequest& request) const;
  void check_sampling(const FilmRequest& request, const VideoShape& shape, double flow_shift) const;
  std::vector<Tensor> encode_references(const FilmRequest& request, const VideoShape& shape);
  struct Part;
  Tensor denoise(const FilmRequest& request, const Part& part, const std::vector<VideoText>& texts,
                 const std::vector<Tensor>& references, FilmResult& result);

  std::string folder_, t5_folder_, clip_folder_, variant_;
  Runtime runtime_, others_;  // of the transformer, and of the rest
  FilmDefaults defaults_;
  VideoLayout layout_;
  int64_t text_dim_ = 0, pooled_dim_ = 0;
  mutable std::string checked_picture_;                   // the folder that check_first_picture found good
  std::vector<std::pair<std::string, VideoText>> texts_;  // most recent last
  size_t max_memory_ = 0;
  std::vector<int64_t> planned_for_;    // sizes that parts_ are of
  std::vector<ComponentMemory> parts_;  // of the request at work, under a limit
  std::optional<LatentColours> colours_;
  bool keep_open_ = false;
  FilmObserver observer_;
  std::unique_ptr<VideoDenoiser> denoiser_;
  std::unique_ptr<VideoAutoencoder> autoencoder_;
};

}  // namespace kinora
