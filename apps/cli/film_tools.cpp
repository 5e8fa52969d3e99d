// kinora inspect and bench of folders with the files of Open-Sora 2.0.
#include <cstdio>

#include "bench.h"
#include "core/rng.h"
#include "diffusion/film_pipeline.h"
#include "diffusion/text_encoders.h"

namespace kinora::cli {
namespace {

using Json = nlohmann::json;

void print_graph(const FilmPipeline& p, const std::string& component, const FilmRequest& r) {
  const Runtime& runtime = p.runtime();
  VideoShape shape = video_shape(p.layout(), r.width, r.height, r.frames);
  auto print = [&](const Graph& graph) {
    std::printf("%s", to_text(compile(graph, *runtime.backend, runtime.context).graph()).c_str());
  };
  int64_t text = p.defaults().text_tokens;
  if (component == "text_encoder") return print(T5Encoder::load(p.t5_folder(), runtime).graph(1, text));
  if (component == "transformer") {
    MmditFiles files = open_mmdit(p.folder(), MmditRole::film);
    VideoDenoiser denoiser(files.config, std::move(files.weights), runtime);
    return print(denoiser.graph({1, shape.latent_frames, shape.rows(), shape.columns(), text}));
  }
  bool encoder = component == "vae.encode";
  print(load_video_autoencoder(p.folder(), runtime)
            .graph(encoder, encoder ? Shape{shape.frames, shape.height, shape.width, 3}
                                    : Shape{shape.latent_frames, shape.latent_height, shape.latent_width,
                                            shape.layout.channels}));
}

void print_attention(const FilmPipeline& p, const FilmRequest& r, const std::string& asked) {
  MmditFiles files = open_mmdit(p.folder(), MmditRole::film);
  VideoDenoiser denoiser(files.config, std::move(files.weights), p.runtime());
  VideoShape shape = video_shape(p.layout(), r.width, r.height, r.frames);
  const Executable& exe =
      denoiser.compiled({1, shape.latent_frames, shape.rows(), shape.columns(), p.defaults().text_tokens});
  std::printf("  attention on %s (--attention %s): transformer %s\n", device_name(p.runtime()).c_str(), asked.c_str(),
              attention_of(exe).c_str());
}

// What one size takes, part by part.
void print_memory(const FilmPipeline& p, const FilmRequest& r) {
  std::printf("    %lldx%lld, %lld frames\n", static_cast<long long>(r.width), static_cast<long long>(r.height),
              static_cast<long long>(r.frames));
  for (const ComponentMemory& part : p.memory_plan(r)) {
    std::printf("      %-26s %10.1f MiB with its weights, %10.1f MiB to work in, %10.1f MiB at least\n",
                part.name.c_str(), mib(part.need.all()), mib(part.need.working), mib(part.need.least()));
  }
}

// One run; a step takes up to three.
void bench_transformer(Bench& bench, const std::string& folder, const Runtime& runtime, const VideoShape& shape,
                       int64_t text_tokens, CpuGenerator& noise) {
  MmditFiles files = open_mmdit(folder, MmditRole::film);
  VideoDenoiser denoiser(files.config, std::move(files.weights), runtime);
  const MmditConfig& c = denoiser.config();
  VideoModelInputs in;
  in.latents = noise.randn({1, shape.tokens(), c.in_channels});
  if (c.cond_embed) in.cond = noise.randn({1, shape.tokens(), c.cond_channels()});
  in.text = noise.randn({1, text_tokens, c.text_dim});
  in.pooled = noise.randn({1, c.pooled_dim});
  in.timestep = Tensor::from({1}, std::vector<float>{0.5f});
  in.positions = MmditPositions::grid(shape.latent_frames, shape.rows(), shape.columns());
  bench.row("transformer", [&](Keep) { denoiser.predict(in); });
  bench.profile(
      "transformer", [&]() -> const Executable& { return denoiser.compiled(VideoDenoiser::extent_of(in)); },
      denoiser.feed(in));
}

}  // namespace

bool is_film_folder(const std::string& folder) { return has_mmdit(folder, MmditRole::film); }

int inspect_film(const std::string& folder, const std::string& graph, const LoadOptions& options) {
  FilmPipeline p = FilmPipeline::load(folder, options);
  const FilmDefaults& d = p.defaults();
  FilmRequest own = p.complete({});
  if (!graph.empty()) return print_graph(p, graph, own), 0;
  const VideoLayout& l = p.layout();
  std::printf("%s\n  Open-Sora, %lldx%lld, %lld frames at %lld a second, %lld steps, guidance %g, image guidance %g\n",
              folder.c_str(), static_cast<long long>(own.width), static_cast<long long>(own.height),
              static_cast<long long>(d.frames), static_cast<long long>(d.fps), static_cast<long long>(d.steps),
              d.guidance, d.image_guidance);
  std::printf("  a latent: %lld channels, %lld frames, %lldx%lld pixels\n", static_cast<long long>(l.channels),
              static_cast<long long>(l.temporal), static_cast<long long>(l.spatial), static_cast<long long>(l.spatial));
  print_weights("t5", T5Encoder::load(p.t5_folder(), p.runtime(), options.variant).weights());
  print_weights("clip", ClipTextEncoder::load(p.clip_folder(), p.runtime(), options.variant).weights());
  print_weights("transformer", open_mmdit(folder, MmditRole::film).weights);
  print_weights("vae", load_video_autoencoder(folder, p.runtime()).weights());
  if (has_mmdit(folder, MmditRole::picture)) {  // draws first pictures
    print_weights("flux", open_mmdit(folder, MmditRole::picture).weights);
    print_weights("flux vae", load_flux_autoencoder(folder, p.runtime()).weights());
  }
  if (!options.max_memory) print_attention(p, own, options.attention);  // which holds all weights at once
  std::printf("  memory, one part after the other; at least: when weights come and go (--max-memory):\n");
  print_memory(p, own);
  for (const char* resolution : {"256px", "768px"}) {
    FilmRequest named;
    named.resolution = resolution;
    named = p.complete(named);
    if (named.width != own.width || named.height != own.height) print_memory(p, named);
  }
  return 0;
}

int bench_film(const std::string& folder, const BenchOptions& o) {
  FilmPipeline p = FilmPipeline::load(folder, o.load);
  FilmRequest r;
  r.width = r.height = o.size;
  r.steps = o.steps;
  r.prompt = "a yellow star moves from left to right";
  r = p.complete(r);
  const Runtime& runtime = p.runtime();
  VideoShape shape = video_shape(p.layout(), r.width, r.height, r.frames);
  if (!o.json)
    std::printf("%s, dtype %s, %lldx%lld, %lld frames\n", describe(runtime).c_str(), o.load.dtype.c_str(),
                static_cast<long long>(r.width), static_cast<long long>(r.height), static_cast<long long>(r.frames));
  Bench bench(o, runtime);
  auto ids = [](int64_t count) {
    return Tensor::from({1, count}, std::vector<int32_t>(static_cast<size_t>(count), 5));
  };
  int64_t text = p.defaults().text_tokens;
  if (bench.wanted("text_encoder")) {
    T5Encoder t5 = T5Encoder::load(p.t5_folder(), runtime, o.load.variant);
    bench.row("text_encoder", [&](Keep) { t5.encode(ids(text)); });
  }
  if (bench.wanted("clip")) {
    ClipTextEncoder clip = ClipTextEncoder::load(p.clip_folder(), runtime, o.load.variant);
    bench.row("clip", [&](Keep) { clip.encode(ids(clip.config().max_positions)); });
  }
  runtime.context.arena->release();
  CpuGenerator noise(1);  // zeros would be multiplied faster than real data
  if (bench.wanted("transformer")) bench_transformer(bench, folder, runtime, shape, text, noise);
  runtime.context.arena->release();
  if (bench.wanted("vae.decode")) {
    VideoAutoencoder autoencoder = load_video_autoencoder(folder, runtime);
    Tensor latents = noise.randn({shape.latent_frames, shape.latent_height, shape.latent_width, shape.layout.channels});
    bench.row("vae.decode", [&](Keep) { autoencoder.decode(latents, [](const Tensor&) {}); });
  }
  runtime.context.arena->release();
  Json parts;
  bench.row("film", [&](Keep) {
    p.forget_texts();
    FilmTimes t = p.generate(r, [](const Tensor&) {}).times;
    parts = {{"encode_s", t.encode}, {"denoise_s", t.denoise}, {"decode_s", t.decode}};
  });
  if (!o.json) return 0;
  Json result{{"device", describe(runtime)}, {"dtype", o.load.dtype}, {"width", r.width},    {"height", r.height},
              {"frames", r.frames},          {"steps", r.steps},      {"rows", bench.rows()}};
  if (!parts.is_null()) result["last_film"] = parts;
  std::printf("%s\n", result.dump(1).c_str());
  return 0;
}

}  // namespace kinora::cli
