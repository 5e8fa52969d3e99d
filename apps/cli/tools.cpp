// kinora eval, inspect, bench, tokenize: looking at models and measuring them.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "core/rng.h"
#include "io/safetensors.h"

namespace kinora::cli {
namespace {

using Json = nlohmann::json;

Tensor channels_last(const Tensor& x) { return x.to(DType::f32).permuted({0, 2, 3, 1}); }
Tensor channels_first(const Tensor& x) { return x.permuted({0, 3, 1, 2}); }

Tensor as_i32(const Tensor& x) {
  if (x.dtype() == DType::i32) return x;
  if (x.dtype() != DType::i64) fail(ErrorKind::input, "'input_ids' must be I32 or I64");
  std::vector<int32_t> ids;
  for (int64_t id : x.values<int64_t>()) ids.push_back(static_cast<int32_t>(id));
  return Tensor::from(x.shape(), ids);
}

void expect_rank(const Tensor& x, int rank, const char* name) {
  if (x.shape().rank() != rank)
    fail(ErrorKind::input,
         std::string("'") + name + "' must have " + std::to_string(rank) + " axes, not shape " + x.shape().str());
}

std::pair<std::string, Tensor> evaluate(Pipeline& p, const std::string& component, const SafetensorsFile& in) {
  auto mask_or_ones = [&](const char* name, int64_t batch, int64_t tokens) {
    if (in.has(name)) return in.tensor(name).to(DType::f32);
    return Tensor::from({batch, tokens}, std::vector<float>(static_cast<size_t>(batch * tokens), 1));
  };
  if (component == "text_encoder") {
    Tensor ids = as_i32(in.tensor("input_ids"));
    expect_rank(ids, 2, "input_ids");
    return {"last_hidden_state",
            p.text_encoder().encode(ids, mask_or_ones("attention_mask", ids.shape()[0], ids.shape()[1]))};
  }
  if (component == "transformer") {
    DenoiseInputs d;
    expect_rank(in.tensor("hidden_states"), 4, "hidden_states");
    expect_rank(in.tensor("encoder_hidden_states"), 3, "encoder_hidden_states");
    d.latents = channels_last(in.tensor("hidden_states"));
    d.caption = in.tensor("encoder_hidden_states").to(DType::f32);
    d.timestep = in.tensor("timestep").to(DType::f32);
    d.mask = mask_or_ones("encoder_attention_mask", d.caption.shape()[0], d.caption.shape()[1]);
    if (p.denoiser().config().guidance_embeds) d.guidance = in.tensor("guidance").to(DType::f32);
    return {"sample", channels_first(p.denoiser().predict(d))};
  }
  if (component == "vae.encode") {
    expect_rank(in.tensor("sample"), 4, "sample");
    return {"latent", channels_first(p.autoencoder().encode(channels_last(in.tensor("sample"))))};
  }
  if (component == "vae.decode") {
    expect_rank(in.tensor("latent"), 4, "latent");
    return {"sample", channels_first(p.autoencoder().decode(channels_last(in.tensor("latent"))))};
  }
  fail(ErrorKind::usage, "unknown component '" + component +
                             "' (text_encoder, transformer, vae.encode, vae.decode, vae3d.encode, vae3d.decode, "
                             "flux_ae.encode, flux_ae.decode)");
}

double mib(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

void print_weights(const char* name, const Weights& weights) {
  std::map<std::string, size_t> by_type;
  for (const std::string& tensor : weights.names()) {
    by_type[std::string(dtype_name(weights.find(tensor)->dtype()))] += weights.find(tensor)->bytes();
  }
  std::string types;
  for (const auto& [type, bytes] : by_type) types += (types.empty() ? "" : ", ") + type;
  std::printf("  %-13s %6zu tensors  %9.1f MiB  %s\n", name, weights.size(), mib(weights.bytes()), types.c_str());
}

int inspect(const std::string& folder, const std::string& graph, const std::string& device, const std::string& dtype) {
  Pipeline p = Pipeline::load(model_folder(folder), {.device = device, .dtype = dtype});
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
  print_weights("text_encoder", p.text_encoder().weights());
  print_weights("transformer", p.denoiser().weights());
  print_weights("vae", p.autoencoder().weights());
  std::printf("  working memory besides the weights, by size of the picture:\n");
  for (int64_t scale : {1, 2, 4}) {
    int64_t side = std::max<int64_t>(d.width * scale / 2 / ratio, 1), runs = p.sprint() ? 1 : 2;
    std::printf("    %5lldx%-5lld transformer %9.1f MiB, decoder %9.1f MiB\n", static_cast<long long>(side * ratio),
                static_cast<long long>(side * ratio), mib(p.denoiser().memory(runs, side, side, tokens)),
                mib(p.autoencoder().memory(false, {1, side, side, channels})));
  }
  return 0;
}

// Seconds of each of `repeats` runs after a few to warm up, sorted.
template <class F>
std::vector<double> time_runs(int repeats, int warm_up, F&& body) {
  for (int i = 0; i < warm_up; ++i) body();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    auto start = std::chrono::steady_clock::now();
    body();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

struct BenchOptions {
  std::string model, device = "auto", dtype = "auto", component;
  int repeats = 5, threads = 0;
  int64_t size = 0, batch = 0, steps = 0;
  bool json = false;
};

class Bench {
 public:
  Bench(const BenchOptions& o, Pipeline& p) : o_(o), p_(p), device_(p.runtime().context.device.get()) {}

  // Work that stays on the device is timed there: inputs uploaded before, nothing copied back, the end waited for.
  void row(const std::string& name, const std::function<void(Keep)>& body) {
    if (!o_.component.empty() && name != o_.component) return;
    std::vector<double> seconds = time_runs(o_.repeats, device_ ? 3 : 1, [&] {
      body(device_ ? Keep::on_device : Keep::on_host);
      if (device_) device_->wait();
    });
    double device_peak = mib(peak_device_memory(p_.runtime()));
    rows_.push_back({{"component", name},
                     {"median_s", seconds[seconds.size() / 2]},
                     {"best_s", seconds[0]},
                     {"peak_mib", mib(peak_memory())},
                     {"device_peak_mib", device_peak}});
    if (o_.json) return;
    std::printf("%-22s median %9.4f s   best %9.4f s   peak so far %9.1f MiB", name.c_str(),
                seconds[seconds.size() / 2], seconds[0], mib(peak_memory()));
    if (device_) std::printf(", %9.1f MiB on the GPU", device_peak);
    std::printf("\n");
  }

  Tensor placed(const Tensor& host) const { return device_ ? device_->to_device(host) : host; }
  Tensor filled(const Shape& shape, float value) const {
    return placed(Tensor::from(shape, std::vector<float>(static_cast<size_t>(shape.numel()), value)));
  }
  const Json& rows() const { return rows_; }

 private:
  const BenchOptions& o_;
  Pipeline& p_;
  Device* device_;
  Json rows_ = Json::array();
};

int bench(const BenchOptions& o) {
  Pipeline p = Pipeline::load(model_folder(o.model),
                              {.device = o.device, .dtype = o.dtype, .threads = o.threads, .stop = &stop_requested});
  const ModelDefaults& d = p.defaults();
  int64_t side = o.size ? o.size : d.width, ratio = p.autoencoder().config().compression(), n = side / ratio;
  int64_t batch = o.batch ? o.batch : p.sprint() ? 1 : 2;
  if (n < 1) fail(ErrorKind::usage, "--size must be at least " + std::to_string(ratio));
  int64_t tokens = d.max_sequence_length, channels = p.denoiser().config().in_channels;
  if (!o.json)
    std::printf("%s, dtype %s, %lldx%lld\n", describe(p.runtime()).c_str(), o.dtype.c_str(),
                static_cast<long long>(side), static_cast<long long>(side));
  Bench bench(o, p);
  CpuGenerator noise(1);  // zeros would be multiplied faster than real data
  int64_t texts = o.batch ? o.batch : 1;
  Tensor ids = Tensor::from({texts, tokens}, std::vector<int32_t>(static_cast<size_t>(texts * tokens), 5));
  ids = bench.placed(ids);
  Tensor ones = bench.filled({texts, tokens}, 1);
  bench.row("text_encoder", [&](Keep keep) { p.text_encoder().encode(ids, ones, keep); });
  DenoiseInputs in;
  in.latents = bench.placed(noise.randn({batch, n, n, channels}));
  in.timestep = bench.filled({batch}, 500);
  in.guidance = bench.filled({batch}, 0.45f);
  in.caption = bench.placed(noise.randn({batch, tokens, p.denoiser().config().caption_channels}));
  in.mask = bench.filled({batch, tokens}, 1);
  // One step, with guidance when the model needs it.
  bench.row("transformer", [&](Keep keep) { p.denoiser().predict(in, keep); });
  Tensor latents = bench.placed(noise.randn({1, n, n, channels}));
  bench.row("vae.decode", [&](Keep keep) { p.autoencoder().decode(latents, {}, keep); });
  Request request;
  request.prompt = "a red apple left of a yellow star on a blue background";
  request.width = request.height = side;
  request.steps = o.steps;
  if (side > 2048) request.tiling = Tiling{1024, 896};
  bench.row("picture", [&](Keep) {
    p.forget_prompts();  // a whole picture is encoded, too
    p.generate(request);
  });
  if (o.json)
    std::printf("%s\n",
                Json{{"device", describe(p.runtime())}, {"dtype", o.dtype}, {"size", side}, {"rows", bench.rows()}}
                    .dump(1)
                    .c_str());
  return 0;
}

}  // namespace

Command add_eval(CLI::App& app) {
  struct Options {
    std::string model, component, input, output, device = "auto", dtype = "auto";
    VideoTileOptions tiles;
  };
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("eval", "Run one component on given tensors");
  c->add_option("model", o->model, "Model folder")->required();
  c->add_option("component", o->component,
                "text_encoder, transformer, vae.encode, vae.decode, vae3d.encode, vae3d.decode, flux_ae.encode or "
                "flux_ae.decode")
      ->required();
  c->add_option("input", o->input, "Safetensors file with the inputs, named and shaped as in diffusers or Open-Sora")
      ->required();
  c->add_option("-o,--output", o->output, "Safetensors file for the output")->required();
  add_device(*c, o->device, o->dtype);
  c->add_option("--tile-size", o->tiles.size, "vae3d: pixels of a tile, 0: none")->check(CLI::Range(0, 16384));
  c->add_option("--tile-frames", o->tiles.frames, "vae3d: frames of a tile, 0: none")->check(CLI::Range(0, 16384));
  return [o] {
    auto result = evaluate_video_ae(o->model, o->component, {o->device, o->dtype}, o->input, o->tiles);
    if (!result) {
      Pipeline p = Pipeline::load(o->model, {.device = o->device, .dtype = o->dtype, .stop = &stop_requested});
      result = evaluate(p, o->component, SafetensorsFile::open(o->input));
    }
    write_safetensors(o->output, {*result});
    return 0;
  };
}

Command add_inspect(CLI::App& app) {
  struct Options {
    std::string model, graph, device = "auto", dtype = "auto";
  };
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("inspect", "Show what a model folder holds and what it needs");
  c->add_option("model", o->model, "Model folder (default: the model that came along)");
  c->add_option("--graph", o->graph, "Print the compiled graph of a component")
      ->check(CLI::IsMember({"text_encoder", "transformer", "vae.encode", "vae.decode"}));
  add_device(*c, o->device, o->dtype);
  return [o] { return inspect(o->model, o->graph, o->device, o->dtype); };
}

Command add_bench(CLI::App& app) {
  auto o = std::make_shared<BenchOptions>();
  CLI::App* c = app.add_subcommand("bench", "Time each component and the whole");
  c->add_option("-m,--model", o->model, "Model folder (default: the model that came along)");
  add_device(*c, o->device, o->dtype);
  c->add_option("-t,--threads", o->threads, "Threads (default: one per core)");
  c->add_option("--size", o->size, "Pixels a side (default: the model's)");
  c->add_option("--batch", o->batch,
                "Rows of the transformer's and the text encoder's batch (default: as one picture needs)")
      ->check(CLI::Range(0, 64));
  c->add_option("--steps", o->steps, "Steps of the whole picture (default: the model's)")->check(CLI::Range(0, 1000));
  c->add_option("--repeats", o->repeats, "Timed runs after the warm-up")->check(CLI::Range(1, 1000));
  c->add_option("--component", o->component, "This one alone")
      ->check(CLI::IsMember({"text_encoder", "transformer", "vae.decode", "picture"}));
  c->add_flag("--json", o->json, "Print JSON");
  return [o] { return bench(*o); };
}

Command add_tokenize(CLI::App& app) {
  struct Options {
    std::string model, text;
  };
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("tokenize", "Show the tokens of a text");
  c->add_option("text", o->text, "The text")->required();
  c->add_option("-m,--model", o->model, "Model folder (default: the model that came along)");
  return [o] {
    std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(model_folder(o->model) + "/tokenizer");
    for (int32_t id : tokenizer->encode(o->text))
      std::printf("%d\t%s\n", id, std::string(tokenizer->piece(id)).c_str());
    return 0;
  };
}

}  // namespace kinora::cli
