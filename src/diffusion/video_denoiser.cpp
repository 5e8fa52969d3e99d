#include "diffusion/video_denoiser.h"

#include <filesystem>

#include "io/safetensors.h"
#include "ops/elementwise.h"

namespace kinora {
namespace {

namespace fs = std::filesystem;

const char* const kAxisNames[] = {"rope_frames", "rope_rows", "rope_columns"};

std::vector<std::string> published_names(MmditRole role) {
  if (role == MmditRole::picture) return {"flux1-dev"};
  return {"Open_Sora_v2", "Open_Sora_v2_Video_DC_AE", "mmdit"};
}

struct Found {
  std::string folder, base;  // base: the file's name without ".safetensors"; empty when there is none
};

Found find_file(const std::string& path, MmditRole role) {
  fs::path file(path);
  if (fs::is_regular_file(file) && file.extension() == ".safetensors") {
    return {file.parent_path().string(), file.stem().string()};
  }
  for (const std::string& name : published_names(role)) {
    for (const char* ending : {".safetensors", ".safetensors.index.json"}) {
      if (fs::is_regular_file(fs::path(path) / (name + ending))) return {path, name};
    }
  }
  return {path, ""};
}

// The model on inputs of a graph, named as VideoModelInputs.
Value build(Graph& graph, const Weights& weights, const MmditConfig& c, const VideoDenoiser::Extent& e, DType dtype,
            bool all_used) {
  int64_t tokens = e.frames * e.rows * e.columns, counts[] = {e.frames, e.rows, e.columns};
  auto input = [&](const char* name, Shape shape) { return cast(graph.input(name, shape), dtype); };
  MmditInputs in;
  in.image = input("latents", {e.batch, tokens, c.in_channels});
  if (c.cond_embed) in.cond = input("cond", {e.batch, tokens, c.cond_channels()});
  in.text = input("text", {e.batch, e.text, c.text_dim});
  in.pooled = input("pooled", {e.batch, c.pooled_dim});
  in.timestep = graph.input("timestep", {e.batch});
  if (c.guidance_embed) in.guidance = graph.input("guidance", {e.batch});
  for (size_t a = 0; a < 3; ++a) in.axes[a] = graph.input(kAxisNames[a], {counts[a], c.axes_dim[a]});
  Params params(graph, weights);
  Value velocity = build_mmdit(params, c, in);
  if (all_used) params.expect_all_used();
  return velocity;
}

}  // namespace

bool has_mmdit(const std::string& path, MmditRole role) { return !mmdit_base(path, role).empty(); }
std::string mmdit_base(const std::string& path, MmditRole role) { return find_file(path, role).base; }

MmditFiles open_mmdit(const std::string& path, MmditRole role) {
  Found found = find_file(path, role);
  if (found.base.empty()) {
    std::string names;
    for (const std::string& name : published_names(role)) names += (names.empty() ? "" : ", ") + name + ".safetensors";
    fail(ErrorKind::io, path + " holds no transformer for " +
                            (role == MmditRole::film ? "films" : "pictures of the Flux kind") + " (looked for " +
                            names + ")");
  }
  MmditFiles files;
  files.weights = open_weights(found.folder, found.base);
  fs::path json = fs::path(found.folder) / (found.base + ".json");
  Config config = fs::exists(json) ? Config::load(json.string()) : Config::parse("{}", files.weights.source());
  files.config = read_mmdit_config(config, files.weights);
  return files;
}

VideoDenoiser::VideoDenoiser(MmditConfig config, Weights weights, Runtime runtime)
    : config_(config), weights_(std::move(weights)), runtime_(std::move(runtime)) {
  Graph probe;  // names and shapes are checked before the first film
  build(probe, weights_, config_, {1, 1, 1, 1, 1}, DType::f32, true);
}

Graph VideoDenoiser::graph(const Extent& extent) const {
  prepare_weights(weights_, "transformer", runtime_);
  Graph graph;
  graph.output("velocity", cast(build(graph, weights_, config_, extent, runtime_.dtype, false), DType::f32));
  return graph;
}

const Executable& VideoDenoiser::compiled(const Extent& e) {
  return cache_.get({e.batch, e.frames, e.rows, e.columns, e.text}, runtime_, [&] { return graph(e); });
}

size_t VideoDenoiser::memory(const Extent& extent) { return compiled(extent).arena_bytes(); }

std::map<std::string, Tensor> VideoDenoiser::feed(const VideoModelInputs& in) const {
  std::map<std::string, Tensor> feed{
      {"latents", in.latents}, {"text", in.text}, {"pooled", in.pooled}, {"timestep", in.timestep}};
  if (config_.cond_embed) feed["cond"] = in.cond;
  if (config_.guidance_embed) feed["guidance"] = in.guidance;
  const std::vector<double>* positions[] = {&in.positions.frames, &in.positions.rows, &in.positions.columns};
  for (int a = 0; a < 3; ++a) feed[kAxisNames[a]] = rope_axis(config_, a, *positions[a]);
  return feed;
}

VideoDenoiser::Extent VideoDenoiser::extent_of(const VideoModelInputs& in) {
  auto count = [](const std::vector<double>& positions) { return static_cast<int64_t>(positions.size()); };
  return {in.latents.shape()[0], count(in.positions.frames), count(in.positions.rows), count(in.positions.columns),
          in.text.shape()[1]};
}

Tensor VideoDenoiser::predict(const VideoModelInputs& in) {
  if (observer_) observer_(in);
  return compiled(extent_of(in)).run(feed(in)).at("velocity");
}

}  // namespace kinora
