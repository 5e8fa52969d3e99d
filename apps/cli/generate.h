// What `kinora generate` was asked for, shared by pictures and films.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "diffusion/film_pipeline.h"
#include "io/config.h"
#include "io/settings.h"

namespace kinora::cli {

struct FilmOptions {
  bool make = false, no_skip = false;
  std::string resolution, aspect, first_picture, picture_resolution, tail, head_film, tail_film, times, key_frames,
      codec, contact_sheet;
  int64_t reference_frames = 33, frames = 0, fps = 0, motion_score = 0, tile_frames = 0, quality = -1;
  double image_guidance = -1, flow_shift = -1, from_flow_shift = -1;
};

struct GenerateOptions {
  std::string prompt, negative, prompt_file, model, scheduler, output, init, from, preview;
  std::string noise, save_noise, noise_kind, from_resolution, max_memory;
  LoadOptions load;
  int64_t width = 0, height = 0, steps = 0, count = 1, batch = 1, tile = 0;
  double guidance = -1, strength = 0, refine_strength = 0.8;
  std::vector<uint64_t> seeds{0};
  bool yes = false, quiet = false, verbose = false;
  FilmOptions film;
};

// Seeds of one prompt's pictures or films: those listed, or `count` that follow one another.
std::vector<uint64_t> seeds_of(const GenerateOptions& options);
// `pattern` with {seed} and {index} filled in.
std::string output_path(std::string pattern, uint64_t seed, int64_t index);
// Throws Error(io) when a file cannot be written there: the name is a folder's, or its folder is missing or locked.
void check_output(const std::string& path);
// The same of all, and Error(usage) when two would have one name.
void check_outputs(const std::vector<std::string>& paths);
void check_noise_kind(const GenerateOptions& options);

// Why a setting would do nothing for a film, or for a picture; empty when it is of use.
std::string why_useless(const SettingDef& def, bool film);

class SettingFlags;
// Binds the flags of `kinora generate` that are settings.
void bind_generate_flags(SettingFlags& flags, GenerateOptions& options);

struct Job;
Request picture_request(const GenerateOptions& options);   // of a picture, without its seed
FilmRequest film_request(const GenerateOptions& options);  // of a film; without a model of first pictures, other films
int generate_pictures(const GenerateOptions& options, const std::vector<Job>& jobs);
int generate_films(const GenerateOptions& options, const std::vector<Job>& jobs);

bool is_film_record(const Config& record);
void apply_film_record(GenerateOptions& options, const Config& record);

}  // namespace kinora::cli
