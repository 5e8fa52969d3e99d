// kinora generate without --video: prompts to picture files, each with a record from which it can be made again.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "core/log.h"
#include "diffusion/video_denoiser.h"
#include "io/safetensors.h"
#include "progress.h"
#include "prompt_file.h"

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
  if (!o.from_resolution.empty()) {
    record["from_resolution"] = o.from_resolution;
    record["refine_strength"] = o.refine_strength;
  }
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

// The file of every picture, in order.
std::vector<std::string> paths_of(const std::vector<Job>& jobs) {
  std::vector<std::string> paths;
  for (const Job& job : jobs) {
    at_line(job, [&] {
      check_output(job.options.save_noise);
      for (uint64_t seed : seeds_of(job.options)) {
        paths.push_back(output_path(job.options.output, seed, static_cast<int64_t>(paths.size())));
        check_image_path(paths.back());
      }
    });
  }
  check_outputs(paths);
  return paths;
}

class PictureRun {
 public:
  PictureRun(const GenerateOptions& o, Pipeline pipeline, std::string model, std::vector<std::string> paths)
      : pipeline_(std::move(pipeline)), model_(std::move(model)), paths_(std::move(paths)), progress_(o.quiet) {}

  // What is wrong with a job is known before the first picture is drawn.
  void check(const GenerateOptions& o) const {
    Request request = picture_request(o);
    for (const std::vector<uint64_t>& seeds : batches(o)) {
      request.seeds = seeds;
      pipeline_.check(request);
    }
  }

  void draw(const GenerateOptions& o) {
    Request request = picture_request(o);
    request.on_stage = [&](const StageReport& report) { progress_.report(report); };
    if (!o.preview.empty()) {
      request.on_step = [&](const StepReport& report) {
        save_image(o.preview, to_image(pipeline_.decode(report.latents->rows(0, 1), request.tiling)));
      };
    }
    for (const std::vector<uint64_t>& seeds : batches(o)) {
      request.seeds = seeds;
      progress_.begin(static_cast<int64_t>(done_) + 1, static_cast<int64_t>(paths_.size()));
      Result result = pipeline_.generate(request);
      if (!o.from_resolution.empty())
        progress_.note(
            fmt::format("drawn small in {:.1f} s, refined in {:.1f} s", result.draft_seconds, result.seconds));
      if (!o.save_noise.empty()) write_safetensors(o.save_noise, {{"latents", result.initial_latents}});
      for (size_t i = 0; i < seeds.size(); ++i) save(o, result, i, seeds[i]);
    }
  }

 private:
  static std::vector<std::vector<uint64_t>> batches(const GenerateOptions& o) {
    std::vector<std::vector<uint64_t>> all;
    for (uint64_t seed : seeds_of(o)) {
      if (all.empty() || static_cast<int64_t>(all.back().size()) == o.batch) all.emplace_back();
      all.back().push_back(seed);
    }
    return all;
  }

  void save(const GenerateOptions& o, const Result& result, size_t i, uint64_t seed) {
    Json record = to_record(o, result, seed, o.prompt, model_);
    const std::string& path = paths_[done_++];
    save_image(path, result.images[i], {to_parameters(record), record.dump(-1, ' ', true)});
    progress_.clear();
    std::printf("%s\n", path.c_str());
    std::fflush(stdout);
  }

  Pipeline pipeline_;
  std::string model_;
  std::vector<std::string> paths_;
  Progress progress_;
  size_t done_ = 0;
};

}  // namespace

Request picture_request(const GenerateOptions& o) {
  Request request;
  request.prompt = o.prompt;
  request.negative_prompt = o.negative;
  request.width = o.width;
  request.height = o.height;
  request.steps = o.steps;
  request.guidance = o.guidance;
  request.scheduler = o.scheduler;
  request.cuda_noise = o.noise_kind == "cuda";
  request.strength = o.strength;
  request.from_resolution = o.from_resolution;
  request.refine_strength = o.refine_strength;
  if (o.tile) {  // an eighth of a tile overlaps the next one, in whole latents
    int64_t overlap = std::max<int64_t>(o.tile / 8 / 32 * 32, 32);
    request.tiling = Tiling{o.tile, std::max<int64_t>(o.tile - overlap, 32)};
  }
  if (!o.init.empty()) request.init_image = load_image(o.init);
  if (!o.noise.empty()) request.latents = SafetensorsFile::open(o.noise).tensor("latents");
  return request;
}

int generate_pictures(const GenerateOptions& o, const std::vector<Job>& jobs) {
  std::vector<std::string> paths = paths_of(jobs);
  size_t pictures = paths.size();
  if (!o.preview.empty()) check_image_path(o.preview);
  check_output(o.preview);
  std::string folder = model_folder(o.model, {.variant = o.load.variant, .yes = o.yes});
  if (has_mmdit(folder, MmditRole::film) && !std::filesystem::exists(folder + "/model_index.json"))
    fail(ErrorKind::usage, folder + " makes films; add --video, or give the --model of pictures");
  PictureRun run(o, Pipeline::load(folder, o.load), model_name(folder), std::move(paths));
  for (const Job& job : jobs) at_line(job, [&] { run.check(job.options); });
  for (const Job& job : jobs) at_line(job, [&] { run.draw(job.options); });
  log(LogLevel::info, fmt::format("{} picture(s), {:.1f} s of processor time, at most {:.0f} MiB of memory", pictures,
                                  processor_seconds(), static_cast<double>(peak_memory()) / (1 << 20)));
  return 0;
}

}  // namespace kinora::cli
