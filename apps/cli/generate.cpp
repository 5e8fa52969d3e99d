// kinora generate: its flags, and what they and records come to.
#include "generate.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "cli.h"
#include "core/log.h"
#include "io/video.h"
#include "prompt_file.h"

namespace kinora::cli {
namespace {

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
  o.seeds = {static_cast<uint64_t>(record.integer("seed", 0, INT64_MAX))};
  o.scheduler = record.text("scheduler", "");
  if (o.load.device == "auto") o.load.device = record.text("device", "cpu");
  if (o.load.dtype == "auto") o.load.dtype = record.text("dtype", "auto");
  if (o.load.attention == "auto") o.load.attention = record.text("attention", "auto");
  o.noise_kind = record.text("noise", "cpu");
  o.noise = record.text("noise_file", "");
  o.init = record.text("init_image", "");
  o.strength = record.real("strength", 0, 1, o.strength);
  o.from_resolution = record.text("from_resolution", "");
  o.refine_strength = record.real("refine_strength", 0, 1, o.refine_strength);
  o.tile = record.integer("tile", 0, 1 << 16, 0);
  o.load.variant = record.text("variant", "");
  if (o.load.quantize == "none") {
    o.load.quantize = record.text("quantize", "none");
    o.load.quantize_layers = record.text("quantize_layers", "");
  }
  if (o.model.empty()) o.model = record.text("model", "");
  o.count = o.batch = 1;
}

// By a flag or --set, not by a file.
bool given_now(const Settings& settings, std::string_view key) {
  const Settings::Item* item = settings.find(key);
  return item && (item->source.kind == SettingSource::Kind::flag || item->source.kind == SettingSource::Kind::set);
}

// Flags that would do nothing.
void refuse_useless(const Settings& settings, bool film) {
  for (const SettingDef& def : setting_table()) {
    if (!given_now(settings, def.key)) continue;
    if (std::string why = why_useless(def, film); !why.empty()) fail(ErrorKind::usage, why);
  }
}

// A named size on the command line wins over pixels in a file, and the other way round.
void settle_film_size(GenerateOptions& o, const Settings& settings) {
  bool named = given_now(settings, "film.resolution") || given_now(settings, "film.aspect_ratio");
  bool sized = given_now(settings, "size.width") || given_now(settings, "size.height");
  if (named && !sized) o.width = o.height = 0;
  if (sized && !named) o.film.resolution = o.film.aspect = "";
}

// `o` is what `flags` are bound to.
int generate(GenerateOptions& o, const SettingFlags& flags) {
  Settings settings = flags.resolve();
  if (o.verbose) set_log_level(LogLevel::info);
  if (!o.from.empty()) apply_record(o);
  refuse_useless(settings, o.film.make);
  check_noise_kind(o);
  if (!o.max_memory.empty()) o.load.max_memory = parse_bytes(o.max_memory);
  if (!o.film.make) return generate_pictures(o, read_jobs(o, flags));
  if (o.from.empty()) settle_film_size(o, settings);
  if (given_now(settings, "film.reference_frames") && o.film.head_film.empty() && o.film.tail_film.empty())
    fail(ErrorKind::usage, "--reference-frames goes with --video-head or --video-tail");
  const Settings::Item* output = settings.find("output.file");
  if (output->source.kind == SettingSource::Kind::fallback) o.output = "kinora-{seed}.mp4";
  return generate_films(o, read_jobs(o, flags));
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
  flags.bind("film.first_picture", o.first_picture);
  flags.bind("film.picture_resolution", o.picture_resolution);
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

std::string why_useless(const SettingDef& def, bool film) {
  constexpr const char* kPicturesOnly[] = {"sampling.scheduler", "sampling.batch", "sampling.strength"};
  bool of_pictures = std::find(std::begin(kPicturesOnly), std::end(kPicturesOnly), def.key) != std::end(kPicturesOnly);
  bool of_films = def.key.starts_with("film.") && def.key != "film.make";
  if (film ? !of_pictures : !of_films) return "";
  std::string flag(def.flags.substr(def.flags.find("--")));
  return flag + (film ? " is for pictures, not for films" : " is for films; add --video to make one");
}

std::vector<uint64_t> seeds_of(const GenerateOptions& o) {
  if (o.seeds.size() > 1 && o.count > 1) fail(ErrorKind::usage, "give either several seeds or --count, not both");
  if (o.seeds.size() > 1) return o.seeds;
  std::vector<uint64_t> seeds;
  for (int64_t i = 0; i < o.count; ++i) seeds.push_back(o.seeds[0] + static_cast<uint64_t>(i));
  return seeds;
}

std::string output_path(std::string pattern, uint64_t seed, int64_t index) {
  auto replace = [&](const std::string& key, const std::string& value) {
    for (size_t at; (at = pattern.find(key)) != std::string::npos;) pattern.replace(at, key.size(), value);
  };
  replace("{seed}", std::to_string(seed));
  replace("{index}", std::to_string(index));
  return pattern;
}

void check_output(const std::string& path) {
  namespace fs = std::filesystem;
  if (path.empty()) return;
  std::error_code error;
  if (fs::is_directory(path, error)) fail(ErrorKind::io, path + " is a folder; name a file to write");
  fs::path folder = fs::path(path).parent_path();
  if (folder.empty()) folder = ".";
  if (!fs::is_directory(folder, error))
    fail(ErrorKind::io, "the output folder " + folder.string() + " does not exist; create it first");
  if (access(folder.c_str(), W_OK) != 0)
    fail(ErrorKind::io, "cannot write into the folder " + folder.string() + ": " + std::strerror(errno));
}

void check_outputs(const std::vector<std::string>& paths) {
  std::set<std::string> seen;
  for (const std::string& path : paths) {
    if (!seen.insert(path).second)
      fail(ErrorKind::usage, "several pictures or films would be written to " + path + "; use {seed} or {index} in -o");
    check_output(path);
  }
}

void check_noise_kind(const GenerateOptions& o) {
  if (o.noise_kind != "cpu" && o.noise_kind != "cuda") fail(ErrorKind::usage, "--rng must be cpu or cuda");
}

void bind_generate_flags(SettingFlags& flags, GenerateOptions& o) {
  flags.bind("prompt.text", o.prompt);
  flags.bind("model.name", o.model);
  flags.bind("prompt.negative", o.negative);
  flags.bind("prompt.file", o.prompt_file);
  flags.bind("sampling.steps", o.steps);
  flags.bind("sampling.guidance", o.guidance);
  flags.bind("size.width", o.width);
  flags.bind("size.height", o.height);
  flags.bind("size.from_resolution", o.from_resolution);
  flags.bind("sampling.refine_strength", o.refine_strength);
  flags.bind("sampling.seed", o.seeds);
  flags.bind("sampling.count", o.count);
  flags.bind("sampling.batch", o.batch);
  flags.bind("sampling.init_image", o.init);
  flags.bind("sampling.strength", o.strength);
  flags.bind("sampling.scheduler", o.scheduler);
  bind_load_options(flags, o.load);
  flags.bind("memory.tile", o.tile);
  flags.bind("memory.max", o.max_memory);
  flags.bind("output.file", o.output);
  flags.bind("output.preview", o.preview);
  bind_film_flags(flags, o.film);
  flags.bind("noise.rng", o.noise_kind);
  flags.bind("noise.file", o.noise);
  flags.bind("noise.save", o.save_noise);
}

Command add_generate(CLI::App& app) {
  auto o = std::make_shared<GenerateOptions>();
  CLI::App* c = app.add_subcommand("generate", "Draw a picture of a prompt, or make a film of it");
  auto flags = std::make_shared<SettingFlags>(*c);
  bind_generate_flags(*flags, *o);
  add_yes(c, o->yes);
  c->add_option("--from", o->from, "Make this kinora picture or film again, from the record inside it");
  c->add_flag("-q,--quiet", o->quiet, "No progress");
  c->add_flag("-v,--verbose", o->verbose, "Also say what takes how long and how much memory");
  return [o, flags] { return generate(*o, *flags); };
}

}  // namespace kinora::cli
