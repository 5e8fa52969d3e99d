// kinora generate: prompts to picture files, each with a record from which it can be made again; and its flags.
#include "generate.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "core/log.h"
#include "io/file.h"
#include "io/hub.h"
#include "io/safetensors.h"
#include "io/video.h"
#include "progress.h"
#include "setting_flags.h"
#include "text/unicode.h"

namespace kinora::cli {
namespace {

using Json = nlohmann::json;

Json to_record(const GenerateOptions& o, const Result& r, uint64_t seed, const std::string& prompt,
               const std::string& model) {
  Json record{{"program", "kinora " KINORA_VERSION},
              {"model", model},
              {"variant", o.load.variant},
              {"prompt", prompt},
              {"negative_prompt", o.negative},
              {"width", r.width},
              {"height", r.height},
              {"steps", r.steps},
              {"guidance", r.guidance},
              {"seed", seed},
              {"scheduler", r.scheduler},
              {"device", r.device},
              {"dtype", r.dtype},
              {"attention", o.load.attention},
              {"noise", o.noise_kind}};
  if (!o.init.empty()) {
    record["init_image"] = std::filesystem::absolute(o.init).string();
    record["strength"] = o.strength;
  }
  if (!o.noise.empty()) record["noise_file"] = std::filesystem::absolute(o.noise).string();
  if (o.tile) record["tile"] = o.tile;
  if (o.load.quantize != "none") record["quantize"] = o.load.quantize;
  if (!o.load.quantize_layers.empty()) record["quantize_layers"] = o.load.quantize_layers;
  return record;
}

// The text that AUTOMATIC1111's web UI writes into its pictures.
std::string to_parameters(const Json& r) {
  char numbers[256];
  std::snprintf(numbers, sizeof numbers, "Steps: %lld, Sampler: %s, CFG scale: %g, Seed: %llu, Size: %lldx%lld",
                static_cast<long long>(r["steps"].get<int64_t>()), r["scheduler"].get<std::string>().c_str(),
                r["guidance"].get<double>(), static_cast<unsigned long long>(r["seed"].get<uint64_t>()),
                static_cast<long long>(r["width"].get<int64_t>()), static_cast<long long>(r["height"].get<int64_t>()));
  std::string negative = r["negative_prompt"];
  return r["prompt"].get<std::string>() + (negative.empty() ? "" : "\nNegative prompt: " + negative) + "\n" + numbers +
         ", Model: " + std::filesystem::path(r["model"].get<std::string>()).filename().string() +
         ", Version: kinora " KINORA_VERSION;
}

void apply_record(GenerateOptions& o) {
  std::string text = is_video_path(o.from) ? read_video_record(o.from) : read_record(o.from).json;
  if (text.empty()) fail(ErrorKind::input, o.from + " holds no record of how it was made by kinora");
  Config record = Config::parse(text, o.from);
  if (is_film_record(record)) return apply_film_record(o, record);
  if (o.film.make) fail(ErrorKind::usage, o.from + " is a picture's; leave --video out to make it again");
  o.prompt = record.text("prompt", "");
  o.negative = record.text("negative_prompt", "");
  o.width = record.integer("width", 1, 1 << 20);
  o.height = record.integer("height", 1, 1 << 20);
  o.steps = record.integer("steps", 1, 1000);
  o.guidance = record.real("guidance", 0, 1000, -1);
  o.seed = static_cast<uint64_t>(record.integer("seed", 0, INT64_MAX));
  o.scheduler = record.text("scheduler", "");
  if (o.load.device == "auto") o.load.device = record.text("device", "cpu");
  if (o.load.dtype == "auto") o.load.dtype = record.text("dtype", "auto");
  if (o.load.attention == "auto") o.load.attention = record.text("attention", "auto");
  o.noise_kind = record.text("noise", "cpu");
  o.noise = record.text("noise_file", "");
  o.init = record.text("init_image", "");
  o.strength = record.real("strength", 0, 1, o.strength);
  o.tile = record.integer("tile", 0, 1 << 16, 0);
  o.load.variant = record.text("variant", "");
  if (o.load.quantize == "none") {
    o.load.quantize = record.text("quantize", "none");
    o.load.quantize_layers = record.text("quantize_layers", "");
  }
  if (o.model.empty()) o.model = record.text("model", "");
  o.count = o.batch = 1;
}

void check_options(const GenerateOptions& o, size_t pictures) {
  if (o.width < 0 || o.height < 0) fail(ErrorKind::usage, "width and height must be positive");
  if (o.noise_kind != "cpu" && o.noise_kind != "cuda") fail(ErrorKind::usage, "--rng must be cpu or cuda");
  check_output(o, pictures);
  check_image_path(o.output);
  if (!o.preview.empty()) check_image_path(o.preview);
}

// By a flag or --set, not by a file.
bool given_now(const Settings& settings, std::string_view key) {
  const Settings::Item* item = settings.find(key);
  return item && (item->source.kind == SettingSource::Kind::flag || item->source.kind == SettingSource::Kind::set);
}

// Flags that would do nothing.
void refuse_useless(const Settings& settings, bool film) {
  constexpr const char* kPicturesOnly[] = {"sampling.scheduler", "sampling.batch", "sampling.strength",
                                           "noise.file",         "noise.save",     "output.preview"};
  for (const SettingDef& def : setting_table()) {
    if (!given_now(settings, def.key)) continue;
    bool of_pictures =
        std::find(std::begin(kPicturesOnly), std::end(kPicturesOnly), def.key) != std::end(kPicturesOnly);
    bool of_films = def.key.starts_with("film.") && def.key != "film.make";
    if (film ? !of_pictures : !of_films) continue;
    std::string flag(def.flags.substr(def.flags.find("--")));
    fail(ErrorKind::usage,
         flag + (film ? " is for pictures, not for films" : " is for films; add --video to make one"));
  }
}

int generate_pictures(const GenerateOptions& o) {
  std::vector<std::string> prompts = read_prompts(o);
  check_options(o, prompts.size() * static_cast<size_t>(o.count));
  std::string folder = model_folder(o.model, {.variant = o.load.variant, .yes = o.yes});
  std::string model = hub::name_of_folder(folder);
  Pipeline pipeline = Pipeline::load(folder, o.load);
  Progress progress(o.quiet);
  Request request;
  request.negative_prompt = o.negative;
  request.width = o.width;
  request.height = o.height;
  request.steps = o.steps;
  request.guidance = o.guidance;
  request.scheduler = o.scheduler;
  request.cuda_noise = o.noise_kind == "cuda";
  request.strength = o.strength;
  if (o.tile) {  // an eighth of a tile overlaps the next one, in whole latents
    int64_t overlap = std::max<int64_t>(o.tile / 8 / 32 * 32, 32);
    request.tiling = Tiling{o.tile, std::max<int64_t>(o.tile - overlap, 32)};
  }
  if (!o.init.empty()) request.init_image = load_image(o.init);
  if (!o.noise.empty()) request.latents = SafetensorsFile::open(o.noise).tensor("latents");
  request.on_stage = [&](const StageReport& report) { progress.report(report); };
  if (!o.preview.empty()) {
    request.on_step = [&](const StepReport& report) {
      save_image(o.preview, to_image(pipeline.decode(report.latents->rows(0, 1), request.tiling)));
    };
  }
  auto pictures = static_cast<int64_t>(prompts.size()) * o.count;
  int64_t index = 0;
  for (const std::string& prompt : prompts) {
    request.prompt = prompt;
    for (int64_t first = 0; first < o.count; first += o.batch) {
      request.seeds.clear();
      for (int64_t i = first; i < std::min(o.count, first + o.batch); ++i)
        request.seeds.push_back(o.seed + static_cast<uint64_t>(i));
      progress.begin(index + 1, pictures);
      Result result = pipeline.generate(request);
      if (!o.save_noise.empty()) write_safetensors(o.save_noise, {{"latents", result.initial_latents}});
      for (size_t i = 0; i < result.images.size(); ++i, ++index) {
        Json record = to_record(o, result, request.seeds[i], prompt, model);
        std::string path = output_path(o.output, request.seeds[i], index);
        save_image(path, result.images[i], {to_parameters(record), record.dump(-1, ' ', true)});
        progress.clear();
        std::printf("%s\n", path.c_str());
        std::fflush(stdout);
      }
    }
  }
  log(LogLevel::info, fmt::format("{} picture(s), {:.1f} s of processor time, at most {:.0f} MiB of memory", pictures,
                                  processor_seconds(), static_cast<double>(peak_memory()) / (1 << 20)));
  return 0;
}

// A named size on the command line wins over pixels in a file, and the other way round.
void settle_film_size(GenerateOptions& o, const Settings& settings) {
  bool named = given_now(settings, "film.resolution") || given_now(settings, "film.aspect_ratio");
  bool sized = given_now(settings, "size.width") || given_now(settings, "size.height");
  if (named && !sized) o.width = o.height = 0;
  if (sized && !named) o.film.resolution = o.film.aspect = "";
}

int generate(GenerateOptions o, const Settings& settings) {
  if (o.verbose) set_log_level(LogLevel::info);
  if (!o.from.empty()) apply_record(o);
  refuse_useless(settings, o.film.make);
  if (!o.film.make) return generate_pictures(o);
  if (o.from.empty()) settle_film_size(o, settings);
  if (given_now(settings, "film.reference_frames") && o.film.head_film.empty() && o.film.tail_film.empty())
    fail(ErrorKind::usage, "--reference-frames goes with --video-head or --video-tail");
  const Settings::Item* output = settings.find("output.file");
  if (output->source.kind == SettingSource::Kind::fallback) o.output = "kinora-{seed}.mp4";
  return generate_films(o);
}

void bind_film_flags(SettingFlags& flags, FilmOptions& o) {
  flags.bind("film.make", o.make);
  flags.bind("film.resolution", o.resolution);
  flags.bind("film.aspect_ratio", o.aspect);
  flags.bind("film.frames", o.frames);
  flags.bind("film.fps", o.fps);
  flags.bind("film.motion_score", o.motion_score);
  flags.bind("film.image_guidance", o.image_guidance);
  flags.bind("film.flow_shift", o.flow_shift);
  flags.bind("film.tail_image", o.tail);
  flags.bind("film.head", o.head_film);
  flags.bind("film.tail", o.tail_film);
  flags.bind("film.reference_frames", o.reference_frames);
  flags.bind("film.times", o.times);
  flags.bind("film.key_frames", o.key_frames);
  flags.bind("film.no_skip", o.no_skip);
  flags.bind("film.tile_frames", o.tile_frames);
  flags.bind("film.codec", o.codec);
  flags.bind("film.quality", o.quality);
  flags.bind("film.contact_sheet", o.contact_sheet);
}

}  // namespace

std::vector<std::string> read_prompts(const GenerateOptions& o) {
  if (o.prompt_file.empty()) return {o.prompt};
  std::vector<std::string> prompts;
  std::string text = read_file(o.prompt_file, size_t{16} << 20), line;
  for (char c : text + "\n") {
    if (c != '\n') {
      line += c;
    } else if (!strip(line).empty()) {
      prompts.push_back(strip(line));
      line.clear();
    } else {
      line.clear();
    }
  }
  if (prompts.empty()) fail(ErrorKind::input, o.prompt_file + " holds no prompt");
  return prompts;
}

std::string output_path(std::string pattern, uint64_t seed, int64_t index) {
  auto replace = [&](const std::string& key, const std::string& value) {
    for (size_t at; (at = pattern.find(key)) != std::string::npos;) pattern.replace(at, key.size(), value);
  };
  replace("{seed}", std::to_string(seed));
  replace("{index}", std::to_string(index));
  return pattern;
}

void check_output(const GenerateOptions& o, size_t outputs) {
  if (outputs > 1 && o.output.find('{') == std::string::npos) {
    fail(ErrorKind::usage, "-o must hold {seed} or {index} when several pictures or films are made");
  }
  if (o.prompt.size() > (size_t{1} << 24)) fail(ErrorKind::input, "the prompt is longer than 16 MiB");
  std::filesystem::path folder = std::filesystem::path(output_path(o.output, o.seed, 0)).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder)) {
    fail(ErrorKind::io, "the output folder " + folder.string() + " does not exist; create it first");
  }
}

Command add_generate(CLI::App& app) {
  auto o = std::make_shared<GenerateOptions>();
  CLI::App* c = app.add_subcommand("generate", "Draw a picture of a prompt, or make a film of it");
  auto flags = std::make_shared<SettingFlags>(*c);
  flags->bind("prompt.text", o->prompt);
  flags->bind("model.name", o->model);
  add_yes(c, o->yes);
  flags->bind("prompt.negative", o->negative);
  flags->bind("prompt.file", o->prompt_file);
  flags->bind("sampling.steps", o->steps);
  flags->bind("sampling.guidance", o->guidance);
  flags->bind("size.width", o->width);
  flags->bind("size.height", o->height);
  flags->bind("sampling.seed", o->seed);
  flags->bind("sampling.count", o->count);
  flags->bind("sampling.batch", o->batch);
  flags->bind("sampling.init_image", o->init);
  flags->bind("sampling.strength", o->strength);
  flags->bind("sampling.scheduler", o->scheduler);
  bind_load_options(*flags, o->load);
  flags->bind("memory.tile", o->tile);
  flags->bind("output.file", o->output);
  c->add_option("--from", o->from, "Make this kinora picture or film again, from the record inside it");
  flags->bind("output.preview", o->preview);
  bind_film_flags(*flags, o->film);
  flags->bind("noise.rng", o->noise_kind);
  flags->bind("noise.file", o->noise);
  flags->bind("noise.save", o->save_noise);
  c->add_flag("-q,--quiet", o->quiet, "No progress");
  c->add_flag("-v,--verbose", o->verbose, "Also say what takes how long and how much memory");
  return [o, flags] {
    Settings settings = flags->resolve();
    return generate(*o, settings);
  };
}

}  // namespace kinora::cli
