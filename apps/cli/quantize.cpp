// kinora quantize: a model folder with weights of 8 or 4 bits, and what that costs each layer.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "cli.h"
#include "diffusion/quantize_model.h"

namespace kinora::cli {
namespace {

struct QuantizeOptions {
  std::string model, format, output, variant;
  std::vector<std::string> keep, layers;
  int threads = 0;
  bool yes = false, quiet = false;
};

double mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

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
  if (!o.quiet) {
    std::printf("relative error, root mean square:\n");
    work.on_layer = [](const LayerReport& r) {
      std::printf("  %7.3f %%  %-13s %-14s %s.%s\n", 100 * r.error, std::string(quant_format_name(r.format)).c_str(),
                  r.shape.str().c_str(), r.component.c_str(), r.layer.c_str());
    };
  }
  work.on_part = [](const PartReport& r) {
    std::printf("%-13s %4zu layers quantized, %.1f MiB became %.1f MiB (%.2f)\n", r.component.c_str(), r.layers,
                mib(r.before), mib(r.after),
                static_cast<double>(r.after) / static_cast<double>(std::max<size_t>(r.before, 1)));
  };
  ThreadPool pool(o.threads);
  quantize_model(work, pool);
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
  c->add_flag("-q,--quiet", o->quiet, "No line for each layer");
  add_yes(c, o->yes);
  return [o] { return quantize(*o); };
}

}  // namespace kinora::cli
