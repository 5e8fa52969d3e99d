// kinora generate --video: prompts to film files, written frame by frame.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "cli.h"
#include "core/log.h"
#include "diffusion/video_denoiser.h"
#include "generate.h"
#include "io/safetensors.h"
#include "io/video.h"
#include "progress.h"
#include "prompt_file.h"

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
  if (!r.first_picture.empty()) {
    record["first_picture"] = model_name(r.first_picture);
    if (!r.picture_resolution.empty()) record["picture_resolution"] = r.picture_resolution;
  }
  if (!o.film.tail.empty()) record["tail_image"] = absolute(o.film.tail);
  if (!o.film.head_film.empty()) record["head_film"] = absolute(o.film.head_film);
  if (!o.film.tail_film.empty()) record["tail_film"] = absolute(o.film.tail_film);
  if (!r.head.empty() || !r.tail.empty()) record["reference_frames"] = o.film.reference_frames;
  record["times"] = is_times_file(r.times) ? absolute(r.times) : r.times;
  if (!o.film.key_frames.empty()) record["key_frames"] = o.film.key_frames;
  if (!o.noise.empty()) record["noise_file"] = absolute(o.noise);
  if (r.from_width) {
    record["from_resolution"] = std::to_string(r.from_width) + "x" + std::to_string(r.from_height);
    record["from_flow_shift"] = r.from_flow_shift;
    record["refine_strength"] = r.refine_strength;
  }
  if (o.load.quantize != "none") record["quantize"] = o.load.quantize;
  if (!o.load.quantize_layers.empty()) record["quantize_layers"] = o.load.quantize_layers;
  if (o.tile) record["tile"] = o.tile;
  if (o.film.tile_frames) record["tile_frames"] = o.film.tile_frames;
  if (!o.film.codec.empty()) record["codec"] = o.film.codec;
  if (o.film.quality >= 0) record["quality"] = o.film.quality;
  return record;
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

struct FilmPaths {
  std::vector<std::string> films, sheets;  // one of each a film; an empty name for no contact sheet
};

FilmPaths paths_of(const std::vector<Job>& jobs) {
  FilmPaths paths;
  std::vector<std::string> written;
  for (const Job& job : jobs) {
    at_line(job, [&] {
      const GenerateOptions& o = job.options;
      check_output(o.save_noise);
      for (uint64_t seed : seeds_of(o)) {
        auto index = static_cast<int64_t>(paths.films.size());
        written.push_back(paths.films.emplace_back(film_path(o.output, seed, index)));
        paths.sheets.push_back(output_path(o.film.contact_sheet, seed, index));
        check_video_path(paths.films.back(), o.film.codec);
        if (paths.sheets.back().empty()) continue;
        check_image_path(paths.sheets.back());
        written.push_back(paths.sheets.back());
      }
    });
  }
  check_outputs(written);
  return paths;
}

class FilmRun {
 public:
  FilmRun(const GenerateOptions& o, FilmPipeline pipeline, std::string model, FilmPaths paths)
      : pipeline_(std::move(pipeline)), model_(std::move(model)), paths_(std::move(paths)), progress_(o.quiet) {
    pipeline_.keep_open(paths_.films.size() > 1);
  }

  // What is wrong with a job is known before the first film is made. Returns the texts it needs encoded.
  std::vector<std::string> check(const GenerateOptions& o) {
    FilmRequest request = pipeline_.complete(request_of(o));
    pipeline_.check_memory(request);
    return pipeline_.texts_of(request);
  }

  // Together, before the films that need them.
  void encode(const std::vector<std::string>& texts) { pipeline_.encode_texts(texts); }

  void make(const GenerateOptions& o) {
    FilmRequest request = request_of(o);
    request.on_stage = [&](const StageReport& report) { progress_.report(report); };
    if (!o.preview.empty()) request.on_preview = [&](const Image& strip) { save_image(o.preview, strip); };
    for (uint64_t seed : seeds_of(o)) {
      request.seed = seed;
      progress_.begin(static_cast<int64_t>(done_) + 1, static_cast<int64_t>(paths_.films.size()), "film");
      make_one(o, pipeline_.complete(request));
      progress_.clear();
      std::printf("%s\n", paths_.films[done_++].c_str());
      std::fflush(stdout);
    }
  }

 private:
  // The folder of the model that draws first pictures.
  std::string picture_folder(const GenerateOptions& o) const {
    if (o.film.first_picture != "auto") return model_folder(o.film.first_picture, {.yes = o.yes});
    if (draws_with_flux(pipeline_.folder())) return pipeline_.folder();
    std::string models = models_beside_program();
    if (models.empty()) fail(ErrorKind::usage, "no model that draws a first picture: give --first-picture MODEL");
    return models + "/kinora-mini";
  }

  FilmRequest request_of(const GenerateOptions& o) const {
    FilmRequest request = film_request(o);
    if (!o.film.first_picture.empty()) request.first_picture = picture_folder(o);
    read_films(o.film, pipeline_, request);
    return request;
  }

  void make_one(const GenerateOptions& o, const FilmRequest& request) {
    Json record = to_record(o, request, pipeline_, model_);
    VideoOptions options{.width = static_cast<int>(request.width),
                         .height = static_cast<int>(request.height),
                         .fps = static_cast<double>(request.fps),
                         .codec = o.film.codec,
                         .quality = static_cast<int>(o.film.quality),
                         .record = {"", record.dump(-1, ' ', true)}};
    // What it refuses is known before the work.
    std::unique_ptr<VideoWriter> writer = open_video(paths_.films[done_], options);
    const std::string& sheet_path = paths_.sheets[done_];
    ContactSheet sheet(request.frames);
    FilmResult result = pipeline_.generate(request, [&](const Tensor& frames) {
      for (int64_t i = 0; i < frames.shape()[0]; ++i) {
        if (stop_requested) fail(ErrorKind::cancelled, "stopped");
        Image frame = to_image(frames, i);
        writer->add(frame);
        if (!sheet_path.empty()) sheet.add(frame);
      }
    });
    writer->finish();
    if (!sheet_path.empty()) save_image(sheet_path, sheet.picture());
    if (!o.save_noise.empty()) write_safetensors(o.save_noise, {{"latents", result.noise}});
    const FilmTimes& t = result.times;
    if (request.from_width)
      progress_.note(fmt::format("made small in {:.1f} s, refined in {:.1f} s", t.draft, t.denoise));
    log(LogLevel::info, fmt::format("encoded in {:.2f} s, denoised in {:.2f} s, decoded in {:.2f} s", t.encode,
                                    t.draft + t.denoise, t.decode));
  }

  FilmPipeline pipeline_;
  std::string model_;
  FilmPaths paths_;
  Progress progress_;
  size_t done_ = 0;
};

// As many jobs from `first` on as need few enough texts to be encoded together: where they end.
size_t end_of_group(const std::vector<std::vector<std::string>>& texts, size_t first) {
  std::set<std::string> distinct;
  size_t end = first;
  for (; end < texts.size(); ++end) {
    distinct.insert(texts[end].begin(), texts[end].end());
    if (end > first && distinct.size() > FilmPipeline::kRememberedTexts) break;
  }
  return end;
}

}  // namespace

FilmRequest film_request(const GenerateOptions& o) {
  FilmRequest r;
  r.prompt = o.prompt;
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
  r.from_resolution = o.from_resolution;
  r.from_flow_shift = o.film.from_flow_shift;
  r.refine_strength = o.refine_strength;
  r.cuda_noise = o.noise_kind == "cuda";
  r.skip = !o.film.no_skip;
  r.times = o.film.times;
  r.key_frames = parse_numbers(o.film.key_frames);
  r.picture_resolution = o.film.picture_resolution;
  r.tile = o.tile;
  r.tile_frames = o.film.tile_frames;
  if (!o.init.empty()) r.first = load_image(o.init);
  if (!o.film.tail.empty()) r.last = load_image(o.film.tail);
  if (!o.noise.empty()) r.noise = SafetensorsFile::open(o.noise).tensor("latents");
  return r;
}

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
  o.seeds = {static_cast<uint64_t>(record.integer("seed", 0, INT64_MAX))};
  o.film.no_skip = !record.boolean("skip", true);
  if (o.load.device == "auto") o.load.device = record.text("device", "cpu");
  if (o.load.dtype == "auto") o.load.dtype = record.text("dtype", "auto");
  if (o.load.attention == "auto") o.load.attention = record.text("attention", "auto");
  o.noise_kind = record.text("noise", "cpu");
  o.noise = record.text("noise_file", "");
  o.init = record.text("init_image", "");
  o.film.first_picture = record.text("first_picture", "");
  o.film.picture_resolution = record.text("picture_resolution", "");
  o.film.tail = record.text("tail_image", "");
  o.film.head_film = record.text("head_film", "");
  o.film.tail_film = record.text("tail_film", "");
  o.film.reference_frames = record.integer("reference_frames", 33, 65, 33);
  o.film.times = record.text("times", "uniform");
  o.film.key_frames = record.text("key_frames", "");
  o.from_resolution = record.text("from_resolution", "");
  o.film.from_flow_shift = record.real("from_flow_shift", 0, 1e6, -1);
  o.refine_strength = record.real("refine_strength", 0, 1, o.refine_strength);
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

int generate_films(const GenerateOptions& o, const std::vector<Job>& jobs) {
  FilmPaths paths = paths_of(jobs);
  size_t films = paths.films.size();
  if (!o.preview.empty()) check_image_path(o.preview);
  check_output(o.preview);
  std::string folder = model_folder(o.model, {.variant = o.load.variant, .yes = o.yes, .films = true});
  if (!has_mmdit(folder, MmditRole::film) && std::filesystem::exists(folder + "/model_index.json"))
    fail(ErrorKind::usage, folder + " draws pictures; leave --video out, or give the --model of films");
  FilmRun run(o, FilmPipeline::load(folder, o.load), model_name(folder), std::move(paths));
  std::vector<std::vector<std::string>> texts(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) at_line(jobs[i], [&] { texts[i] = run.check(jobs[i].options); });
  for (size_t first = 0; first < jobs.size();) {
    size_t end = end_of_group(texts, first);
    std::vector<std::string> together;
    for (size_t i = first; i < end; ++i) together.insert(together.end(), texts[i].begin(), texts[i].end());
    if (jobs.size() > 1) run.encode(together);
    for (; first < end; ++first) at_line(jobs[first], [&] { run.make(jobs[first].options); });
  }
  log(LogLevel::info, fmt::format("{} film(s), {:.1f} s of processor time, at most {:.0f} MiB of memory", films,
                                  processor_seconds(), static_cast<double>(peak_memory()) / (1 << 20)));
  return 0;
}

}  // namespace kinora::cli
