// What a film's request means: its defaults filled in, its sizes and tasks found, all of it checked before any work.
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "diffusion/film_pipeline.h"
#include "diffusion/video_prompt.h"
#include "diffusion/video_times.h"
#include "io/file.h"

namespace kinora {
namespace {

constexpr int64_t kPictureCell = 16;  // of the reference's table of pictures
constexpr const char *kResolution = "256px", *kAspect = "16:9";

std::string or_else(const std::string& text, const char* fallback) { return text.empty() ? fallback : text; }

// Both or neither of width and height; neither if the size is to follow from a resolution and a ratio.
void fill_in_pixels(FilmRequest& r, const FilmDefaults& defaults) {
  bool named = !r.resolution.empty() || !r.aspect.empty();
  if (named && (r.width || r.height))
    fail(ErrorKind::usage, "a film has either a named resolution and aspect ratio or a width and a height");
  if (!r.width != !r.height) fail(ErrorKind::usage, "a film's width and height go together; give both");
  if (!named && !r.width) {
    r.width = defaults.width;
    r.height = defaults.height;
  }
}

void fill_in_named_size(FilmRequest& r, int64_t cell) {
  if (!r.width) {
    std::tie(r.width, r.height) = named_size(or_else(r.resolution, kResolution), or_else(r.aspect, kAspect), cell);
  }
  r.resolution.clear();
  r.aspect.clear();
}

void fill_in_numbers(FilmRequest& r, const FilmDefaults& defaults) {
  auto fill = [](auto& value, auto fallback, bool silent) {
    if (silent) value = fallback;
  };
  fill(r.frames, defaults.frames, r.frames == 0);
  fill(r.steps, defaults.steps, r.steps == 0);
  fill(r.fps, defaults.fps, r.fps == 0);
  fill(r.motion_score, defaults.motion_score, r.motion_score == 0);
  fill(r.guidance, defaults.guidance, r.guidance < 0);
  fill(r.image_guidance, defaults.image_guidance, r.image_guidance < 0);
}

double usual_shift(const VideoShape& shape) { return flow_shift(shape.tokens_per_frame(), shape.latent_frames); }

// A quarter of a tile is shared with the next one, in whole latents.
void check_tile(const std::string& what, int64_t tile, int64_t latent) {
  int64_t multiple = 4 * latent;
  if (tile == 0 || (tile > 0 && tile % multiple == 0)) return;
  fail(ErrorKind::usage, "tiles of " + std::to_string(tile) + " " + what + " do not fit this model; they must be " +
                             "multiples of " + std::to_string(multiple));
}

void check_noise(const Tensor& noise, const VideoShape& shape, int64_t channels) {
  if (!noise.defined()) return;
  Shape expected{1, channels, shape.latent_frames, shape.latent_height, shape.latent_width};
  if (noise.shape() == expected && is_float(noise.dtype())) return;
  fail(ErrorKind::input,
       "the given noise has shape " + noise.shape().str() + ", but this film needs " + expected.str());
}

}  // namespace

FilmRequest FilmPipeline::complete(FilmRequest r) const {
  fill_in_pixels(r, defaults_);
  complete_picture(r);
  fill_in_named_size(r, layout_.cell());
  if (!r.picture_resolution.empty()) size_like(r.picture_resolution, r.width, r.height, 1);
  fill_in_numbers(r, defaults_);
  VideoShape shape = shape_of(r);
  complete_draft(r);
  if (r.flow_shift < 0) r.flow_shift = usual_shift(shape);

  video_prompt(r.prompt, r.fps, r.motion_score);
  positions_of(r, shape);
  check_tile("pixels", r.tile, layout_.spatial);
  check_tile("frames", r.tile_frames, layout_.temporal);
  check_sampling(r, shape, r.flow_shift);
  check_noise(r.noise, r.from_width ? draft_shape_of(r) : shape, layout_.channels);
  return r;
}

// The picture that is drawn first, while the film's size may yet be a name.
void FilmPipeline::complete_picture(FilmRequest& r) const {
  if (r.first_picture.empty()) {
    if (r.picture_resolution.empty()) return;
    fail(ErrorKind::usage, "a resolution of the first picture goes with a model that draws it");
  }
  if (r.first) fail(ErrorKind::usage, "the first picture is either given or drawn, not both");
  if (checked_picture_ != r.first_picture) check_first_picture(r.first_picture, text_dim_, pooled_dim_, runtime_);
  checked_picture_ = r.first_picture;
  // Of a named ratio the reference has a table.
  std::string resolution = or_else(r.picture_resolution, kFluxResolution);
  bool by_name = !r.width && (resolution.ends_with("px") || resolution.ends_with("p"));
  if (by_name && draws_with_flux(r.first_picture)) {
    auto [w, h] = named_size(resolution, or_else(r.aspect, kAspect), kPictureCell, true);
    r.picture_resolution = std::to_string(w) + "x" + std::to_string(h);
  }
}

// The smaller film that is made first, if one is.
void FilmPipeline::complete_draft(FilmRequest& r) const {
  if (!r.from_resolution.empty()) {
    std::tie(r.from_width, r.from_height) = draft_size(r.from_resolution, r.width, r.height, layout_.cell());
    r.from_resolution.clear();
  }
  if (!r.from_width) return;
  VideoShape draft = draft_shape_of(r);
  if (r.from_flow_shift < 0) r.from_flow_shift = r.flow_shift < 0 ? usual_shift(draft) : r.flow_shift;
  check_sampling(r, draft, r.from_flow_shift);
}

// Enough frames for what is given, strengths and levels in range.
void FilmPipeline::check_sampling(const FilmRequest& r, const VideoShape& shape, double shift) const {
  VideoTaskInfo task = task_of(r);
  std::vector<Tensor> references;
  if (task.task != VideoTask::text) {
    int64_t given = latent_frames_of(layout_, kinora::reference_frames(task, layout_));
    Tensor nothing = Tensor::zeros({1, given, shape.latent_height, shape.latent_width, layout_.channels});
    references.assign(task.task == VideoTask::loop ? 2 : 1, nothing);
  }
  VideoCondition condition = video_condition(task, shape, references);
  guidance_steps({.text = r.guidance, .image = r.image_guidance}, r.steps, shape.latent_frames, condition);
  first_step_at(flow_levels(r.steps, shift), r.refine_strength);
}

VideoTaskInfo FilmPipeline::task_of(const FilmRequest& r) const {
  const std::vector<Image>& film = r.head.empty() ? r.tail : r.head;
  bool first = r.first || !r.first_picture.empty();
  if (film.empty()) {
    if (first && r.last) return {VideoTask::loop};
    return {first ? VideoTask::head : r.last ? VideoTask::tail : VideoTask::text};
  }
  if (first || r.last || (!r.head.empty() && !r.tail.empty()))
    fail(ErrorKind::usage, "a film begins or ends either with pictures or with one film given");
  for (int64_t frames : {33, 65}) {
    if (static_cast<int64_t>(film.size()) == reference_frames(frames))
      return {r.head.empty() ? VideoTask::extend_tail : VideoTask::extend_head, frames};
  }
  fail(ErrorKind::usage, "a film of " + std::to_string(film.size()) + " frames cannot be extended, only one of " +
                             std::to_string(reference_frames(33)) + " or " + std::to_string(reference_frames(65)));
}

VideoShape FilmPipeline::shape_of(const FilmRequest& r) const {
  return video_shape(layout_, r.width, r.height, r.frames);
}

VideoShape FilmPipeline::draft_shape_of(const FilmRequest& r) const {
  return video_shape(layout_, r.from_width, r.from_height, r.frames);
}

std::vector<double> FilmPipeline::positions_of(const FilmRequest& r, const VideoShape& shape) const {
  bool adaptive = r.times == "adaptive";
  if (!adaptive && !r.key_frames.empty()) fail(ErrorKind::usage, "key frames go with adaptive times alone");
  if (adaptive) return adaptive_positions(shape, r.key_frames);
  if (r.times == "uniform") return uniform_positions(shape);
  return parse_positions(shape, read_file(r.times, size_t{1} << 20), r.times);
}

}  // namespace kinora
