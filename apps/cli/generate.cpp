// kinora generate: prompts to picture files, each with a record from which it can be made again.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "text/unicode.h"

namespace kinora::cli {
namespace {

using Json = nlohmann::json;

struct Options {
  std::string prompt, negative, prompt_file, model, variant, device = "auto", dtype = "auto", scheduler,
                                                             output = "kinora-{seed}.png", init, from, preview;
  std::string noise, save_noise, noise_kind = "cpu";
  int64_t width = 0, height = 0, steps = 0, count = 1, batch = 1, tile = 0;
  double guidance = -1, strength = 0.6;
  uint64_t seed = 0;
  int threads = 0;
};

// Progress on stderr: one line that is redrawn on a terminal, a line per step elsewhere.
class Progress {
 public:
  void begin() { start_ = last_ = std::chrono::steady_clock::now(); }
  void step(const StepReport& report) {
    auto now = std::chrono::steady_clock::now();
    double spent = std::chrono::duration<double>(now - start_).count();
    double each = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    double left = spent / static_cast<double>(report.step) * static_cast<double>(report.steps - report.step);
    bool terminal = isatty(STDERR_FILENO);
    std::fprintf(stderr, "%sstep %lld/%lld  %.2f s/step  %.0f s left%s", terminal ? "\r" : "",
                 static_cast<long long>(report.step), static_cast<long long>(report.steps), each, left,
                 terminal ? "   " : "\n");
    if (terminal && report.step == report.steps) std::fprintf(stderr, "\n");
  }

 private:
  std::chrono::steady_clock::time_point start_, last_;
};

Json to_record(const Options& o, const Result& r, uint64_t seed, const std::string& prompt, const std::string& model) {
  Json record{{"program", "kinora " KINORA_VERSION},
              {"model", model},
              {"variant", o.variant},
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
              {"noise", o.noise_kind}};
  if (!o.init.empty()) {
    record["init_image"] = std::filesystem::absolute(o.init).string();
    record["strength"] = o.strength;
  }
  if (!o.noise.empty()) record["noise_file"] = std::filesystem::absolute(o.noise).string();
  if (o.tile) record["tile"] = o.tile;
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

void apply_record(Options& o) {
  std::string text = read_record(o.from).json;
  if (text.empty()) fail(ErrorKind::input, o.from + " holds no record of how it was made by kinora");
  Config record = Config::parse(text, o.from);
  o.prompt = record.text("prompt", "");
  o.negative = record.text("negative_prompt", "");
  o.width = record.integer("width", 1, 1 << 20);
  o.height = record.integer("height", 1, 1 << 20);
  o.steps = record.integer("steps", 1, 1000);
  o.guidance = record.real("guidance", 0, 1000, -1);
  o.seed = static_cast<uint64_t>(record.integer("seed", 0, INT64_MAX));
  o.scheduler = record.text("scheduler", "");
  if (o.device == "auto") o.device = record.text("device", "cpu");
  if (o.dtype == "auto") o.dtype = record.text("dtype", "auto");
  o.noise_kind = record.text("noise", "cpu");
  o.noise = record.text("noise_file", "");
  o.init = record.text("init_image", "");
  o.strength = record.real("strength", 0, 1, o.strength);
  o.tile = record.integer("tile", 0, 1 << 16, 0);
  o.variant = record.text("variant", "");
  if (o.model.empty()) o.model = record.text("model", "");
  o.count = o.batch = 1;
}

std::vector<std::string> read_prompts(const Options& o) {
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

void check_options(const Options& o, size_t pictures) {
  if (o.width < 0 || o.height < 0) fail(ErrorKind::usage, "width and height must be positive");
  if (o.noise_kind != "cpu" && o.noise_kind != "cuda") fail(ErrorKind::usage, "--rng must be cpu or cuda");
  if (pictures > 1 && o.output.find('{') == std::string::npos) {
    fail(ErrorKind::usage, "-o must hold {seed} or {index} when several pictures are drawn");
  }
  check_image_path(o.output);
  if (!o.preview.empty()) check_image_path(o.preview);
  if (o.prompt.size() > (size_t{1} << 24)) fail(ErrorKind::input, "the prompt is longer than 16 MiB");
  std::filesystem::path folder = std::filesystem::path(output_path(o.output, o.seed, 0)).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder)) {
    fail(ErrorKind::io, "the output folder " + folder.string() + " does not exist; create it first");
  }
}

int generate(Options o) {
  if (!o.from.empty()) apply_record(o);
  std::vector<std::string> prompts = read_prompts(o);
  check_options(o, prompts.size() * static_cast<size_t>(o.count));
  std::string model = model_folder(o.model);
  Pipeline pipeline = Pipeline::load(
      model,
      {.variant = o.variant, .device = o.device, .dtype = o.dtype, .threads = o.threads, .stop = &stop_requested});
  Progress progress;
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
  request.on_step = [&](const StepReport& report) {
    progress.step(report);
    if (!o.preview.empty())
      save_image(o.preview, to_image(pipeline.decode(report.latents->rows(0, 1), request.tiling)));
  };
  int64_t index = 0;
  for (const std::string& prompt : prompts) {
    request.prompt = prompt;
    for (int64_t first = 0; first < o.count; first += o.batch) {
      request.seeds.clear();
      for (int64_t i = first; i < std::min(o.count, first + o.batch); ++i)
        request.seeds.push_back(o.seed + static_cast<uint64_t>(i));
      progress.begin();
      Result result = pipeline.generate(request);
      if (!o.save_noise.empty()) write_safetensors(o.save_noise, {{"latents", result.initial_latents}});
      for (size_t i = 0; i < result.images.size(); ++i, ++index) {
        Json record = to_record(o, result, request.seeds[i], prompt, model);
        std::string path = output_path(o.output, request.seeds[i], index);
        save_image(path, result.images[i], {to_parameters(record), record.dump(-1, ' ', true)});
        std::printf("%s\n", path.c_str());
        std::fflush(stdout);
      }
    }
  }
  return 0;
}

}  // namespace

Command add_generate(CLI::App& app) {
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("generate", "Draw a picture of a prompt");
  c->add_option("prompt", o->prompt, "What to draw");
  c->add_option("-m,--model", o->model, "Folder of a diffusers checkpoint (default: the model that came along)");
  c->add_option("-n,--negative-prompt", o->negative, "What not to draw");
  c->add_option("--prompt-file", o->prompt_file, "A file with one prompt a line");
  c->add_option("--steps", o->steps, "Denoising steps (default: the model's)")->check(CLI::Range(1, 1000));
  c->add_option("-g,--guidance,--cfg-scale", o->guidance, "How closely to follow the prompt (default: the model's)")
      ->check(CLI::Range(0.0, 1000.0));
  c->add_option("-W,--width", o->width, "Pixels (default: the model's)")->check(CLI::Range(1, 1 << 20));
  c->add_option("-H,--height", o->height, "Pixels (default: the model's)")->check(CLI::Range(1, 1 << 20));
  c->add_option("-s,--seed", o->seed, "Seed of the noise; the same seed gives the same bytes")
      ->check(CLI::Range(int64_t{0}, INT64_MAX))
      ->capture_default_str();
  c->add_option("--count", o->count, "Pictures for each prompt, with seeds that count up")
      ->check(CLI::Range(1, 100000));
  c->add_option("-b,--batch", o->batch, "Pictures computed at once")->check(CLI::Range(1, 64));
  c->add_option("-i,--init-image", o->init, "Start from this picture");
  c->add_option("--strength", o->strength, "How far to go from the start picture, 0 to 1")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c->add_option("--scheduler", o->scheduler, "dpm++, euler or scm (default: the model's)")
      ->check(CLI::IsMember({"dpm++", "euler", "scm"}));
  add_device(*c, o->device, o->dtype);
  c->add_option("--variant", o->variant, "Weight files to take: fp16 or bf16 (default: the plain ones)");
  c->add_option("-t,--threads", o->threads, "Threads (default: one per core)")->check(CLI::Range(0, 4096));
  c->add_option("--tile", o->tile, "Decode in tiles of so many pixels, to save memory")->check(CLI::Range(32, 8192));
  c->add_option("-o,--output", o->output, "Picture file: .png, .jpg or .webp; {seed} and {index} are filled in")
      ->capture_default_str();
  c->add_option("--from", o->from, "Make this kinora picture again, from the record inside it");
  c->add_option("--preview", o->preview, "Write the picture so far to this file after every step");
  c->add_option("--rng", o->noise_kind, "Whose noise: cpu or cuda, as in PyTorch")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  c->add_option("--noise", o->noise,
                "Safetensors file with the initial noise, tensor 'latents' [batch, channels, h, w]");
  c->add_option("--save-noise", o->save_noise, "Write the initial noise to this file");
  return [o] { return generate(*o); };
}

}  // namespace kinora::cli
