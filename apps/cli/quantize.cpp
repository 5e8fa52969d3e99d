// kinora quantize: a model folder with weights of 8 or 4 bits, and what that costs each layer.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "cli.h"
#include "diffusion/quantize_model.h"
#include "progress.h"
#include "prompt_file.h"

namespace kinora::cli {
namespace {

struct QuantizeOptions {
  std::string model, format, output, variant, prompts, save_statistics, statistics;
  std::string device = "auto", dtype = "auto";
  std::vector<std::string> keep, layers;
  int64_t steps = 4;
  int threads = 0;
  bool yes = false, quiet = false;
};

double mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// A film that needs more than its line and its pictures.
void refuse_parts(const FilmOptions& o) {
  if (o.first_picture.empty() && o.head_film.empty() && o.tail_film.empty()) return;
  fail(ErrorKind::usage,
       "films to calibrate with begin with text or given pictures, neither with other films nor with "
       "pictures that a model draws first");
}

// One request for each picture or film of a prompt file. Where a line names no seed, seeds follow one another, so that
// no two begin with the same noise.
void read_requests(const std::string& file, bool films, CalibrationOptions& to) {
  CLI::App nobody;
  GenerateOptions options;
  SettingFlags flags(nobody);
  bind_generate_flags(flags, options);
  flags.resolve();
  options.prompt_file = file;
  options.film.make = films;
  uint64_t count = 0;
  for (const Job& job : read_jobs(options, flags)) {
    at_line(job, [&] {
      for (uint64_t seed : seeds_of(job.options)) {
        if (job.options.seeds == options.seeds) seed += count;
        ++count;
        if (films) {
          refuse_parts(job.options.film);
          to.films.push_back(film_request(job.options));
          to.films.back().seed = seed;
        } else {
          to.pictures.push_back(picture_request(job.options));
          to.pictures.back().seeds = {seed};
        }
      }
    });
  }
}

std::unique_ptr<Calibration> open_calibration(const QuantizeOptions& o, const std::string& folder,
                                              std::shared_ptr<Progress> progress) {
  CalibrationOptions c;
  bool films = calibrates_with_films(folder);
  c.folder = folder;
  c.variant = o.variant;
  read_requests(o.prompts, films, c);
  c.runtime = make_runtime(o.device, o.dtype, o.threads, &stop_requested);
  c.steps = o.steps;
  c.on_picture = [progress, films](size_t picture, size_t pictures) {
    progress->begin(static_cast<int64_t>(picture) + 1, static_cast<int64_t>(pictures), films ? "film" : "picture");
  };
  c.on_stage = [progress](const StageReport& report) { progress->report(report); };
  c.on_layers = [progress](const std::string& component, size_t layers) {
    progress->note("looking at the inputs of " + std::to_string(layers) + " layers of the " + component);
  };
  return std::make_unique<Calibration>(std::move(c));
}

// What each layer's line says, and in the end the middle of what calibration did to products.
class LayerLines {
 public:
  void print(const LayerReport& r) {
    if (!headed_) {
      std::printf("relative error, root mean square%s:\n",
                  r.product_error ? "; of the layer's products, without calibration -> with it" : "");
    }
    headed_ = true;
    if (!r.product_error) {
      std::printf("  %7.3f %%  ", 100 * r.error);
    } else {
      std::printf("  %7.3f %%  %7.3f %% -> %7.3f %%  ", 100 * r.error, 100 * *r.product_error_before,
                  100 * *r.product_error);
      plain_.push_back(100 * *r.product_error_before);
      calibrated_.push_back(100 * *r.product_error);
    }
    std::printf("%-13s %-14s %s.%s\n", std::string(quant_format_name(r.format)).c_str(), r.shape.str().c_str(),
                r.component.c_str(), r.layer.c_str());
  }
  void print_middle() {
    if (plain_.empty()) return;
    std::printf("products of %zu layers, median error: %.3f %% without calibration, %.3f %% with it\n", plain_.size(),
                median(plain_), median(calibrated_));
  }

 private:
  static double median(std::vector<double>& values) {
    auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }
  bool headed_ = false;
  std::vector<double> plain_, calibrated_;
};

int quantize(const QuantizeOptions& o) {
  std::string rules;
  for (const std::string& pattern : o.keep) rules += pattern + "=keep,";
  for (const std::string& rule : o.layers) rules += rule + ",";
  QuantizeModelOptions work;
  if (o.format == "none") fail(ErrorKind::usage, "--to takes " + quant_format_names(", ", " or "));
  work.quantization = parse_quantization(o.format, rules);
  work.model = model_folder(o.model, {.variant = o.variant, .yes = o.yes});
  work.output = o.output;
  work.variant = o.variant;
  work.stop = &stop_requested;
  std::unique_ptr<Calibration> calibration;
  auto progress = std::make_shared<Progress>(o.quiet);
  if (!o.prompts.empty()) calibration = open_calibration(o, work.model, progress);
  work.calibration = calibration.get();
  check_output(o.save_statistics);
  work.save_statistics = o.save_statistics;
  LayerLines lines;
  if (!o.quiet) {
    work.on_layer = [&](const LayerReport& r) {
      progress->clear();
      lines.print(r);
    };
  }
  work.on_part = [](const PartReport& r) {
    std::printf("%-13s %4zu layers quantized, %.1f MiB became %.1f MiB (%.2f)\n", r.component.c_str(), r.layers,
                mib(r.before), mib(r.after),
                static_cast<double>(r.after) / static_cast<double>(std::max<size_t>(r.before, 1)));
  };
  ThreadPool pool(o.threads);
  std::optional<SavedStatistics> statistics;
  if (!o.statistics.empty()) work.statistics = &statistics.emplace(o.statistics, &pool);
  quantize_model(work, pool);
  lines.print_middle();
  std::printf("%s\n", o.output.c_str());
  return 0;
}

}  // namespace

Command add_quantize(CLI::App& app) {
  auto o = std::make_shared<QuantizeOptions>();
  CLI::App* c = app.add_subcommand("quantize", "Write a model with weights of 8 or 4 bits");
  c->add_option("model", o->model, "Model folder, name on the hub, or safetensors file of a transformer")->required();
  c->add_option("--to", o->format, quant_format_names(", ", " or "))->required();
  c->add_option("-o,--output", o->output, "New folder")->required();
  c->add_option("--keep", o->keep, "Layers that stay as they are, such as 'transformer.*attn2*'; may be repeated");
  c->add_option("--layers", o->layers, "PATTERN=FORMAT: layers that get another format; may be repeated");
  c->add_option("--variant", o->variant, "Weight files to take: fp16 or bf16 (default: the plain ones)");
  c->add_option("-t,--threads", o->threads, "Threads; 0 for one per core")->check(CLI::Range(0, 4096));
  CLI::Option* prompts = c->add_option("--calibrate", o->prompts,
                                       "Prompts, one a line or as JSON: draw them with the model as it is, and round "
                                       "weights with regard to what they are multiplied with");
  c->add_option("--calibrate-steps", o->steps, "Steps of each picture or film that count (default: 4)")
      ->check(CLI::Range(1, 1000))
      ->needs(prompts);
  c->add_option("--save-statistics", o->save_statistics, "File for what was found, for --statistics")->needs(prompts);
  c->add_option("--statistics", o->statistics, "File that --save-statistics wrote: round by that, without drawing")
      ->excludes(prompts);
  c->add_option("--device", o->device, "Where to draw them: auto, cpu, cuda or cuda:N")->needs(prompts);
  c->add_option("--dtype", o->dtype, "Of activations meanwhile: auto, float32, bfloat16 or float16")->needs(prompts);
  c->add_flag("-q,--quiet", o->quiet, "No line for each layer");
  add_yes(c, o->yes);
  return [o] { return quantize(*o); };
}

}  // namespace kinora::cli
