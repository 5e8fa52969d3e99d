// kinora eval, inspect, bench, tokenize: looking at models and measuring them.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bench.h"
#include "cli.h"
#include "core/rng.h"
#include "io/safetensors.h"
#include "measure.h"
#include "setting_flags.h"

namespace kinora::cli {
namespace {

using Json = nlohmann::json;

Tensor channels_last(const Tensor& x) { return x.to(DType::f32).permuted({0, 2, 3, 1}); }
Tensor channels_first(const Tensor& x) { return x.permuted({0, 3, 1, 2}); }

// Throws unless the shape fits the pattern, in which -1 is any positive extent.
void expect_input(const Tensor& x, const char* name, std::initializer_list<int64_t> pattern, const char* words) {
  bool fits = x.shape().rank() == static_cast<int>(pattern.size());
  int axis = 0;
  for (int64_t extent : pattern) {
    if (fits) fits = extent < 0 ? x.shape()[axis] > 0 : x.shape()[axis] == extent;
    ++axis;
  }
  if (!fits) {
    fail(ErrorKind::input, std::string("'") + name + "' must be " + words + ", not of shape " + x.shape().str());
  }
}

Tensor token_ids(const Tensor& x, int64_t vocabulary) {
  if (x.dtype() != DType::i32 && x.dtype() != DType::i64) fail(ErrorKind::input, "'input_ids' must be I32 or I64");
  expect_input(x, "input_ids", {-1, -1}, "[batch, tokens]");
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < x.numel(); ++i) {
    int64_t id = x.dtype() == DType::i32 ? x.data<int32_t>()[i] : x.data<int64_t>()[i];
    if (id < 0 || id >= vocabulary) {
      fail(ErrorKind::input,
           "token id " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(vocabulary));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return Tensor::from(x.shape(), ids);
}

// [batch, tokens] as given, or ones.
Tensor mask_or_ones(const SafetensorsFile& in, const char* name, int64_t batch, int64_t tokens) {
  if (!in.has(name)) {
    return Tensor::from({batch, tokens}, std::vector<float>(static_cast<size_t>(batch * tokens), 1));
  }
  expect_input(in.tensor(name), name, {batch, tokens}, "[batch, tokens] like the rest");
  return in.tensor(name).to(DType::f32);
}

Tensor evaluate_transformer(Denoiser& model, const SafetensorsFile& in) {
  const SanaConfig& c = model.config();
  Tensor latents = in.tensor("hidden_states"), caption = in.tensor("encoder_hidden_states");
  expect_input(latents, "hidden_states", {-1, c.in_channels, -1, -1}, "[batch, in_channels, height, width]");
  int64_t batch = latents.shape()[0];
  if (latents.shape()[2] % c.patch_size != 0 || latents.shape()[3] % c.patch_size != 0) {
    fail(ErrorKind::input, "'hidden_states' must have height and width in multiples of " +
                               std::to_string(c.patch_size) + ", not shape " + latents.shape().str());
  }
  expect_input(caption, "encoder_hidden_states", {batch, -1, c.caption_channels}, "[batch, tokens, caption_channels]");
  DenoiseInputs d;
  d.latents = channels_last(latents);
  d.caption = caption.to(DType::f32);
  expect_input(in.tensor("timestep"), "timestep", {batch}, "[batch]");
  d.timestep = in.tensor("timestep").to(DType::f32);
  d.mask = mask_or_ones(in, "encoder_attention_mask", batch, caption.shape()[1]);
  d.lengths = mask_lengths(d.mask);
  if (c.guidance_embeds) {
    expect_input(in.tensor("guidance"), "guidance", {batch}, "[batch]");
    d.guidance = in.tensor("guidance").to(DType::f32);
  }
  return channels_first(model.predict(d));
}

std::pair<std::string, Tensor> evaluate(Pipeline& p, const std::string& component, const SafetensorsFile& in) {
  const DcAeConfig& vae = p.autoencoder().config();
  if (component == "text_encoder") {
    Tensor ids = token_ids(in.tensor("input_ids"), p.text_encoder().config().vocab_size);
    Tensor mask = mask_or_ones(in, "attention_mask", ids.shape()[0], ids.shape()[1]);
    return {"last_hidden_state", p.text_encoder().encode(ids, mask)};
  }
  if (component == "transformer") return {"sample", evaluate_transformer(p.denoiser(), in)};
  if (component == "vae.encode") {
    Tensor picture = in.tensor("sample");
    expect_input(picture, "sample", {-1, vae.in_channels, -1, -1}, "[batch, channels, height, width]");
    int64_t multiple = vae.compression();
    if (picture.shape()[2] % multiple != 0 || picture.shape()[3] % multiple != 0) {
      fail(ErrorKind::input, "'sample' must have height and width in multiples of " + std::to_string(multiple) +
                                 ", not shape " + picture.shape().str());
    }
    return {"latent", channels_first(p.autoencoder().encode(channels_last(picture)))};
  }
  if (component == "vae.decode") {
    Tensor latents = in.tensor("latent");
    expect_input(latents, "latent", {-1, vae.latent_channels, -1, -1}, "[batch, latent_channels, height, width]");
    return {"sample", channels_first(p.autoencoder().decode(channels_last(latents)))};
  }
  fail(ErrorKind::usage, "unknown component '" + component +
                             "' (text_encoder, transformer, vae.encode, vae.decode, mmdit, flux, vae3d.encode, "
                             "vae3d.decode, flux_ae.encode, flux_ae.decode)");
}

int inspect(const std::string& folder, const std::string& graph, const LoadOptions& options) {
  if (is_film_folder(folder)) return inspect_film(folder, graph, options);
  Pipeline p = Pipeline::load(folder, options);
  const ModelDefaults& d = p.defaults();
  int64_t ratio = p.autoencoder().config().compression(), channels = p.denoiser().config().in_channels,
          tokens = d.max_sequence_length;
  if (!graph.empty()) {
    int64_t h = d.height / ratio, w = d.width / ratio;
    Graph g = graph == "text_encoder" ? p.text_encoder().graph(1, tokens)
              : graph == "transformer"
                  ? p.denoiser().graph(2, h, w, tokens)
                  : p.autoencoder().graph(graph == "vae.encode", graph == "vae.encode" ? Shape{1, d.height, d.width, 3}
                                                                                       : Shape{1, h, w, channels});
    std::printf("%s", to_text(compile(g, *p.runtime().backend, p.runtime().context).graph()).c_str());
    return 0;
  }
  std::printf("%s\n  %s, %lldx%lld, %lld steps, guidance %g\n", p.folder().c_str(), p.sprint() ? "Sana-Sprint" : "Sana",
              static_cast<long long>(d.width), static_cast<long long>(d.height), static_cast<long long>(d.steps),
              d.guidance);
  p.text_encoder().graph(1, 1);  // weights are shown as they are used
  p.denoiser().prepared_weights();
  print_weights("text_encoder", p.text_encoder().weights());
  print_weights("transformer", p.denoiser().weights());
  print_weights("vae", p.autoencoder().weights());
  int64_t runs_together = p.sprint() ? 1 : 2, h = std::max<int64_t>(d.height / ratio, 1),
          w = std::max<int64_t>(d.width / ratio, 1);
  std::printf("  attention on %s (--attention %s): text_encoder %s; transformer %s; vae %s\n",
              device_name(p.runtime()).c_str(), options.attention.c_str(),
              attention_of(p.text_encoder().compiled(1, tokens)).c_str(),
              attention_of(p.denoiser().compiled(runs_together, h, w, tokens)).c_str(),
              attention_of(p.autoencoder().compiled(false, {1, h, w, channels})).c_str());
  std::printf("  working memory besides the weights, by size of the picture:\n");
  for (int64_t scale : {1, 2, 4}) {
    int64_t side = std::max<int64_t>(d.width * scale / 2 / ratio, 1), runs = p.sprint() ? 1 : 2;
    std::printf("    %5lldx%-5lld transformer %9.1f MiB, decoder %9.1f MiB\n", static_cast<long long>(side * ratio),
                static_cast<long long>(side * ratio), mib(p.denoiser().memory(runs, side, side, tokens)),
                mib(p.autoencoder().memory(false, {1, side, side, channels})));
  }
  return 0;
}

int bench(const BenchOptions& o) {
  std::string folder = model_folder(o.model, {.variant = o.load.variant, .yes = o.yes});
  if (is_film_folder(folder)) return bench_film(folder, o);
  Pipeline p = Pipeline::load(folder, o.load);
  const ModelDefaults& d = p.defaults();
  int64_t side = o.size ? o.size : d.width, ratio = p.autoencoder().config().compression(), n = side / ratio;
  int64_t batch = o.batch ? o.batch : p.sprint() ? 1 : 2;
  if (n < 1) fail(ErrorKind::usage, "--size must be at least " + std::to_string(ratio));
  int64_t tokens = d.max_sequence_length, channels = p.denoiser().config().in_channels;
  if (!o.json)
    std::printf("%s, dtype %s, %lldx%lld\n", describe(p.runtime()).c_str(), o.load.dtype.c_str(),
                static_cast<long long>(side), static_cast<long long>(side));
  Bench bench(o, p.runtime());
  CpuGenerator noise(1);  // zeros would be multiplied faster than real data
  int64_t texts = o.batch ? o.batch : 1;
  Tensor ids = Tensor::from({texts, tokens}, std::vector<int32_t>(static_cast<size_t>(texts * tokens), 5));
  ids = bench.placed(ids);
  Tensor ones = bench.filled({texts, tokens}, 1);
  bench.row("text_encoder", [&](Keep keep) { p.text_encoder().encode(ids, ones, keep); });
  bench.profile("text_encoder", [&]() -> const Executable& { return p.text_encoder().compiled(texts, tokens); },
                {{"ids", ids}, {"mask", ones}});
  DenoiseInputs in;
  in.latents = bench.placed(noise.randn({batch, n, n, channels}));
  in.timestep = bench.filled({batch}, 500);
  in.guidance = bench.filled({batch}, 0.45f);
  in.caption = bench.placed(noise.randn({batch, tokens, p.denoiser().config().caption_channels}));
  in.lengths = bench.placed(Tensor::from({batch}, std::vector<int32_t>(size_t(batch), int32_t(tokens))));
  // One step, with guidance when the model needs it.
  bench.row("transformer", [&](Keep keep) { p.denoiser().predict(in, keep); });
  bench.profile(
      "transformer", [&]() -> const Executable& { return p.denoiser().compiled(batch, n, n, tokens); },
      p.denoiser().feed(in));
  Tensor latents = bench.placed(noise.randn({1, n, n, channels}));
  bench.row("vae.decode", [&](Keep keep) { p.autoencoder().decode(latents, {}, {}, keep); });
  bench.profile("vae.decode", [&]() -> const Executable& { return p.autoencoder().compiled(false, latents.shape()); },
                {{"x", latents}});
  Request request;
  request.width = request.height = side;
  request.steps = o.steps;
  if (side > 2048) request.tiling = Tiling{1024, 896};
  int run = 0;
  bench.row("picture", [&](Keep) {  // a new prompt each time, so that it is encoded each time
    request.prompt = "a red apple left of a yellow star on a blue background " + std::to_string(run++ % 10);
    p.forget_prompts();
    p.generate(request);
  });
  if (o.json)
    std::printf("%s\n",
                Json{{"device", describe(p.runtime())}, {"dtype", o.load.dtype}, {"size", side}, {"rows", bench.rows()}}
                    .dump(1)
                    .c_str());
  return 0;
}

}  // namespace

Command add_eval(CLI::App& app) {
  struct Options {
    std::string model, component, input, output;
    LoadOptions load;
    VideoTileOptions tiles;
    EvalTiming timing;
    bool yes = false;
  };
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("eval", "Run one component on given tensors");
  c->add_option("model", o->model, "Model folder or name, or the folder of a T5 or CLIP text encoder")->required();
  c->add_option("component", o->component,
                "text_encoder, transformer, vae.encode, vae.decode, mmdit, flux, vae3d.encode, vae3d.decode, "
                "flux_ae.encode or flux_ae.decode")
      ->required();
  c->add_option("input", o->input, "Safetensors file with the inputs, named and shaped as in diffusers or Open-Sora")
      ->required();
  c->add_option("-o,--output", o->output, "Safetensors file for the output")->required();
  auto flags = std::make_shared<SettingFlags>(*c);
  bind_load_options(*flags, o->load);
  c->add_option("--tile-size", o->tiles.size, "vae3d: pixels of a tile, 0: none")->check(CLI::Range(0, 16384));
  c->add_option("--tile-frames", o->tiles.frames, "vae3d: frames of a tile, 0: none")->check(CLI::Range(0, 16384));
  c->add_option("--repeats", o->timing.repeats, "mmdit, flux, T5: time so many more runs, as JSON on standard output")
      ->check(CLI::Range(0, 10000));
  c->add_flag("--by-op", o->timing.by_op, "mmdit, flux, T5: where the time of one run goes");
  add_yes(c, o->yes);
  return [o, flags] {
    flags->resolve();
    const LoadOptions& load = o->load;
    std::string model = model_folder(o->model, {.variant = load.variant, .yes = o->yes});
    auto runtime = [&] { return make_runtime(load); };
    std::vector<std::pair<std::string, Tensor>> results;
    if (is_mmdit(o->component)) {
      results = {evaluate_mmdit(model, o->component, SafetensorsFile::open(o->input), runtime(), o->timing)};
    } else if (is_video_ae(o->component)) {
      results = {evaluate_video_ae(model, o->component, SafetensorsFile::open(o->input), runtime(), o->tiles)};
    } else if (is_text_encoder(model)) {
      if (o->component != "text_encoder")
        fail(ErrorKind::usage, "unknown component '" + o->component + "' (the folder holds a text_encoder)");
      results = evaluate_text_encoder(model, SafetensorsFile::open(o->input), runtime(), o->timing);
    } else {
      Pipeline p = Pipeline::load(model, load);
      results = {evaluate(p, o->component, SafetensorsFile::open(o->input))};
    }
    write_safetensors(o->output, results);
    return 0;
  };
}

Command add_inspect(CLI::App& app) {
  struct Options {
    std::string model, graph;
    LoadOptions load;
    bool yes = false;
  };
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("inspect", "Show what a model folder holds and what it needs");
  auto flags = std::make_shared<SettingFlags>(*c);
  flags->bind("model.name", o->model, "model");
  c->add_option("--graph", o->graph, "Print the compiled graph of a component (of a film's: transformer)")
      ->check(CLI::IsMember({"text_encoder", "transformer", "vae.encode", "vae.decode"}));
  bind_load_options(*flags, o->load);
  add_yes(c, o->yes);
  return [o, flags] {
    flags->resolve();
    const LoadOptions& load = o->load;
    std::string folder = model_folder(o->model, {.variant = load.variant, .yes = o->yes});
    if (!is_mmdit_folder(folder)) return inspect(folder, o->graph, load);
    return inspect_mmdit(folder, !o->graph.empty(), make_runtime(load));
  };
}

Command add_bench(CLI::App& app) {
  auto o = std::make_shared<BenchOptions>();
  CLI::App* c = app.add_subcommand("bench", "Time each component and the whole");
  auto flags = std::make_shared<SettingFlags>(*c);
  flags->bind("model.name", o->model);
  bind_load_options(*flags, o->load);
  flags->bind("bench.size", o->size);
  flags->bind("bench.batch", o->batch);
  flags->bind("bench.steps", o->steps);
  flags->bind("bench.repeats", o->repeats);
  flags->bind("bench.component", o->component);
  flags->bind("bench.json", o->json);
  flags->bind("bench.by_op", o->by_op);
  add_yes(c, o->yes);
  return [o, flags] {
    flags->resolve();
    return bench(*o);
  };
}

Command add_tokenize(CLI::App& app) {
  struct Options {
    std::string model, text;
    int64_t length = 0;
    bool yes = false;
  };
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("tokenize", "Show the tokens of a text");
  c->add_option("text", o->text, "The text")->required();
  auto flags = std::make_shared<SettingFlags>(*c);
  flags->bind("model.name", o->model);
  c->add_option("--length", o->length, "Cut or pad to so many tokens, as a text encoder gets them")
      ->check(CLI::Range(1, 1 << 20));
  add_yes(c, o->yes);
  return [o, flags] {
    flags->resolve();
    std::string folder = model_folder(o->model, {.yes = o->yes, .components = {"tokenizer"}});
    std::string inner = folder + "/tokenizer";
    std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(std::filesystem::is_directory(inner) ? inner : folder);
    auto length = static_cast<size_t>(o->length);
    for (int32_t id : length ? tokenizer->encode_padded(o->text, length) : tokenizer->encode(o->text))
      std::printf("%d\t%s\n", id, std::string(tokenizer->piece(id)).c_str());
    return 0;
  };
}

}  // namespace kinora::cli
