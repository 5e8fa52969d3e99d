// kinora generate --video: prompts to film files, written frame by frame.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "core/log.h"
#include "generate.h"
#include "io/hub.h"
#include "io/video.h"
#include "progress.h"

namespace kinora::cli {
namespace {

using Json = nlohmann::json;

// "0,32" -> 0, 32
std::vector<double> parse_numbers(const std::string& list) {
  std::vector<double> numbers;
  for (size_t at = 0; at <= list.size() && !list.empty();) {
    size_t end = std::min(list.find(',', at), list.size());
    double number = 0;
    auto [stop, error] = std::from_chars(list.data() + at, list.data() + end, number);
    if (error != std::errc() || stop != list.data() + end)
      fail(ErrorKind::usage, "--key-frames takes numbers separated by commas, as 0,32; not '" + list + "'");
    numbers.push_back(number);
    at = end + 1;
  }
  return numbers;
}

std::string absolute(const std::string& path) { return std::filesystem::absolute(path).string(); }

bool is_times_file(const std::string& times) { return times != "uniform" && times != "adaptive"; }

Json to_record(const GenerateOptions& o, const FilmRequest& r, const FilmPipeline& pipeline, const std::string& model) {
  Json record{{"program", "kinora " KINORA_VERSION},
              {"kind", "film"},
              {"model", model},
              {"variant", o.load.variant},
              {"prompt", r.prompt},
              {"negative_prompt", r.negative_prompt},
              {"width", r.width},
              {"height", r.height},
              {"frames", r.frames},
              {"fps", r.fps},
              {"motion_score", r.motion_score},
              {"steps", r.steps},
              {"guidance", r.guidance},
              {"image_guidance", r.image_guidance},
              {"flow_shift", r.flow_shift},
              {"seed", r.seed},
              {"skip", r.skip},
              {"device", device_name(pipeline.runtime())},
              {"dtype", dtype_name(pipeline.runtime())},
              {"attention", o.load.attention},
              {"noise", o.noise_kind}};
  if (!o.init.empty()) record["init_image"] = absolute(o.init);
  if (!o.film.tail.empty()) record["tail_image"] = absolute(o.film.tail);
  if (!o.film.head_film.empty()) record["head_film"] = absolute(o.film.head_film);
  if (!o.film.tail_film.empty()) record["tail_film"] = absolute(o.film.tail_film);
  if (!r.head.empty() || !r.tail.empty()) record["reference_frames"] = o.film.reference_frames;
  record["times"] = is_times_file(r.times) ? absolute(r.times) : r.times;
  if (!o.film.key_frames.empty()) record["key_frames"] = o.film.key_frames;
  if (o.load.quantize != "none") record["quantize"] = o.load.quantize;
  if (!o.load.quantize_layers.empty()) record["quantize_layers"] = o.load.quantize_layers;
  if (o.tile) record["tile"] = o.tile;
  if (o.film.tile_frames) record["tile_frames"] = o.film.tile_frames;
  if (!o.film.codec.empty()) record["codec"] = o.film.codec;
  if (o.film.quality >= 0) record["quality"] = o.film.quality;
  return record;
}

FilmRequest to_request(const GenerateOptions& o) {
  FilmRequest r;
  r.negative_prompt = o.negative;
  r.resolution = o.film.resolution;
  r.aspect = o.film.aspect;
  r.width = o.width;
  r.height = o.height;
  r.frames = o.film.frames;
  r.steps = o.steps;
  r.fps = o.film.fps;
  r.motion_score = o.film.motion_score;
  r.guidance = o.guidance;
  r.image_guidance = o.film.image_guidance;
  r.flow_shift = o.film.flow_shift;
  r.cuda_noise = o.noise_kind == "cuda";
  r.skip = !o.film.no_skip;
  r.times = o.film.times;
  r.key_frames = parse_numbers(o.film.key_frames);
  r.tile = o.tile;
  r.tile_frames = o.film.tile_frames;
  if (!o.init.empty()) r.first = load_image(o.init);
  if (!o.film.tail.empty()) r.last = load_image(o.film.tail);
  return r;
}

// How many frames fit is the pipeline's to say.
void read_films(const FilmOptions& o, const FilmPipeline& pipeline, FilmRequest& request) {
  int64_t count = pipeline.reference_frames(o.reference_frames);
  if (!o.head_film.empty()) {
    VideoReader reader = VideoReader::open(o.head_film);
    request.head = first_frames(reader, count);
  }
  if (!o.tail_film.empty()) {
    VideoReader reader = VideoReader::open(o.tail_film);
    request.tail = last_frames(reader, count);
  }
}

bool is_row_of_pictures(const std::string& path) { return std::filesystem::path(path).extension() == ".png"; }

// In a row of pictures {index} is the frame's.
std::string film_path(const std::string& pattern, uint64_t seed, int64_t index) {
  size_t at = is_row_of_pictures(pattern) ? pattern.rfind("{index}") : std::string::npos;
  if (at == std::string::npos) return output_path(pattern, seed, index);
  return output_path(pattern.substr(0, at), seed, index) + "{index}" +
         output_path(pattern.substr(at + std::string("{index}").size()), seed, index);
}

// Makes one film; `request` is complete.
void make_film(const GenerateOptions& o, FilmPipeline& pipeline, const FilmRequest& request, const std::string& path,
               const std::string& sheet_path, const Json& record) {
  VideoOptions options{.width = static_cast<int>(request.width),
                       .height = static_cast<int>(request.height),
                       .fps = static_cast<double>(request.fps),
                       .codec = o.film.codec,
                       .quality = static_cast<int>(o.film.quality),
                       .record = {"", record.dump(-1, ' ', true)}};
  std::unique_ptr<VideoWriter> writer = open_video(path, options);  // what it refuses is known before the work
  ContactSheet sheet(request.frames);
  pipeline.generate(request, [&](const Tensor& frames) {
    for (int64_t i = 0; i < frames.shape()[0]; ++i) {
      if (stop_requested) fail(ErrorKind::cancelled, "stopped");
      Image frame = to_image(frames, i);
      writer->add(frame);
      if (!sheet_path.empty()) sheet.add(frame);
    }
  });
  writer->finish();
  if (!sheet_path.empty()) save_image(sheet_path, sheet.picture());
}

}  // namespace

bool is_film_record(const Config& record) { return record.text("kind", "") == "film"; }

void apply_film_record(GenerateOptions& o, const Config& record) {
  o.film.make = true;
  o.prompt = record.text("prompt", "");
  o.negative = record.text("negative_prompt", "");
  o.film.resolution = o.film.aspect = "";
  o.width = record.integer("width", 1, 1 << 20);
  o.height = record.integer("height", 1, 1 << 20);
  o.film.frames = record.integer("frames", 1, 1 << 14);
  o.film.fps = record.integer("fps", 1, 240);
  o.film.motion_score = record.integer("motion_score", 1, 15);
  o.steps = record.integer("steps", 1, 1000);
  o.guidance = record.real("guidance", 0, 1000, -1);
  o.film.image_guidance = record.real("image_guidance", 0, 1000, -1);
  o.film.flow_shift = record.real("flow_shift", 0, 1e6, -1);
  o.seed = static_cast<uint64_t>(record.integer("seed", 0, INT64_MAX));
  o.film.no_skip = !record.boolean("skip", true);
  if (o.load.device == "auto") o.load.device = record.text("device", "cpu");
  if (o.load.dtype == "auto") o.load.dtype = record.text("dtype", "auto");
  if (o.load.attention == "auto") o.load.attention = record.text("attention", "auto");
  o.noise_kind = record.text("noise", "cpu");
  o.init = record.text("init_image", "");
  o.film.tail = record.text("tail_image", "");
  o.film.head_film = record.text("head_film", "");
  o.film.tail_film = record.text("tail_film", "");
  o.film.reference_frames = record.integer("reference_frames", 33, 65, 33);
  o.film.times = record.text("times", "uniform");
  o.film.key_frames = record.text("key_frames", "");
  o.tile = record.integer("tile", 0, 1 << 16, 0);
  o.film.tile_frames = record.integer("tile_frames", 0, 1 << 16, 0);
  o.film.codec = record.text("codec", "");
  o.film.quality = record.integer("quality", -1, 100, -1);
  o.load.variant = record.text("variant", "");
  if (o.load.quantize == "none") {
    o.load.quantize = record.text("quantize", "none");
    o.load.quantize_layers = record.text("quantize_layers", "");
  }
  if (o.model.empty()) o.model = record.text("model", "");
  o.count = 1;
}

int generate_films(const GenerateOptions& o) {
  std::vector<std::string> prompts = read_prompts(o);
  auto films = static_cast<int64_t>(prompts.size()) * o.count;
  check_output(o, static_cast<size_t>(films));
  check_video_path(o.output, o.film.codec);
  if (films > 1 && is_row_of_pictures(o.output))
    fail(ErrorKind::usage,
         "frames as .png are those of one film; several films go to .mp4, .mkv, .webm, .webp or .gif");
  if (films > 1 && !o.film.contact_sheet.empty() && o.film.contact_sheet.find('{') == std::string::npos)
    fail(ErrorKind::usage, "--contact-sheet must hold {seed} or {index} when several films are made");
  if (!o.film.contact_sheet.empty()) check_image_path(o.film.contact_sheet);
  if (o.model.empty() && !std::getenv("KINORA_MODEL"))
    fail(ErrorKind::usage,
         "no model that makes films: give --model FOLDER with the published files of Open-Sora 2.0, or set "
         "KINORA_MODEL");
  FilmRequest request = to_request(o);
  std::string folder = model_folder(o.model, {.variant = o.load.variant, .yes = o.yes});
  FilmPipeline pipeline = FilmPipeline::load(folder, o.load);
  read_films(o.film, pipeline, request);
  Progress progress(o.quiet);
  int64_t index = 0;
  for (const std::string& prompt : prompts) {
    for (int64_t i = 0; i < o.count; ++i, ++index) {
      request.prompt = prompt;
      request.seed = o.seed + static_cast<uint64_t>(i);
      request.on_stage = [&](const StageReport& report) { progress.report(report); };
      progress.begin(index + 1, films, "film");
      FilmRequest complete = pipeline.complete(request);
      std::string path = film_path(o.output, request.seed, index);
      make_film(o, pipeline, complete, path, output_path(o.film.contact_sheet, request.seed, index),
                to_record(o, complete, pipeline, hub::name_of_folder(folder)));
      progress.clear();
      std::printf("%s\n", path.c_str());
      std::fflush(stdout);
    }
  }
  log(LogLevel::info, fmt::format("{} film(s), {:.1f} s of processor time, at most {:.0f} MiB of memory", films,
                                  processor_seconds(), static_cast<double>(peak_memory()) / (1 << 20)));
  return 0;
}

}  // namespace kinora::cli
