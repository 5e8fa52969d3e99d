// kinora eval and inspect of the video transformer, and eval of Flux: one run on tensors named and shaped as in
// Open-Sora's code.
#include <cstdio>
#include <filesystem>

#include "cli.h"
#include "diffusion/video_denoiser.h"
#include "io/safetensors.h"
#include "measure.h"

namespace kinora::cli {
namespace {

Tensor input(const SafetensorsFile& in, const std::string& name, const Shape& shape) {
  Tensor tensor = in.tensor(name);
  if (!is_float(tensor.dtype())) fail(ErrorKind::input, "'" + name + "' must hold floating-point numbers");
  if (!(tensor.shape() == shape)) {
    fail(ErrorKind::input, "'" + name + "' must have shape " + shape.str() + ", not " + tensor.shape().str());
  }
  return tensor.to(DType::f32);
}

// The extent of an axis of a tensor of that many axes, whatever it is.
int64_t extent(const SafetensorsFile& in, const std::string& name, int rank, int axis) {
  Shape shape = in.tensor(name).shape();
  if (shape.rank() != rank || shape.numel() == 0) {
    fail(ErrorKind::input, "'" + name + "' must have " + std::to_string(rank) +
                               " axes and not be empty, but its shape is " + shape.str());
  }
  return shape[axis];
}

// The axes of the grid that ids [batch, tokens, 3] walk through, last axis fastest. Throws Error(input) when they do
// not.
MmditPositions grid_of(const Tensor& ids) {
  int64_t batch = ids.shape()[0], tokens = ids.shape()[1];
  const float* at = ids.data<float>();
  auto id = [&](int64_t token, int64_t axis) { return static_cast<double>(at[token * 3 + axis]); };
  MmditPositions p;
  int64_t columns = 1, plane;
  while (columns < tokens && id(columns, 1) == id(0, 1) && id(columns, 0) == id(0, 0)) ++columns;
  for (plane = columns; plane < tokens && id(plane, 0) == id(0, 0);) plane += columns;
  for (int64_t i = 0; i < columns; ++i) p.columns.push_back(id(i, 2));
  for (int64_t i = 0; i < plane && i < tokens; i += columns) p.rows.push_back(id(i, 1));
  for (int64_t i = 0; i < tokens; i += plane) p.frames.push_back(id(i, 0));
  bool same = p.tokens() == tokens;
  for (int64_t i = 0; same && i < batch * tokens; ++i) {
    int64_t t = i % tokens;
    same = id(i, 0) == p.frames[static_cast<size_t>(t / plane)] &&
           id(i, 1) == p.rows[static_cast<size_t>(t % plane / columns)] &&
           id(i, 2) == p.columns[static_cast<size_t>(t % columns)];
  }
  if (!same) fail(ErrorKind::input, "'img_ids' must walk through one grid of frames, rows and columns");
  return p;
}

}  // namespace

bool is_mmdit(const std::string& component) { return component == "mmdit" || component == "flux"; }

std::pair<std::string, Tensor> evaluate_mmdit(const std::string& model, const std::string& component,
                                              const SafetensorsFile& in, const Runtime& runtime,
                                              const EvalTiming& timing) {
  MmditFiles files = open_mmdit(model, component == "flux" ? MmditRole::picture : MmditRole::film);
  VideoDenoiser denoiser(files.config, files.weights, runtime);
  const MmditConfig& c = denoiser.config();
  int64_t batch = extent(in, "img", 3, 0), tokens = extent(in, "img", 3, 1), text = extent(in, "txt", 3, 1);
  VideoModelInputs run;
  run.latents = input(in, "img", {batch, tokens, c.in_channels});
  if (c.cond_embed) run.cond = input(in, "cond", {batch, tokens, c.cond_channels()});
  run.text = input(in, "txt", {batch, text, c.text_dim});
  run.pooled = input(in, "y_vec", {batch, c.pooled_dim});
  run.timestep = input(in, "timesteps", {batch});
  if (c.guidance_embed) run.guidance = input(in, "guidance", {batch});
  run.positions = grid_of(input(in, "img_ids", {batch, tokens, 3}));
  Tensor velocity = denoiser.predict(run);
  timing.report(component, denoiser.compiled(VideoDenoiser::extent_of(run)), denoiser.feed(run), runtime);
  return {"velocity", velocity};
}

bool is_mmdit_folder(const std::string& folder) {
  for (const char* other : {"model_index.json", "google", "t5"}) {
    if (std::filesystem::exists(std::filesystem::path(folder) / other)) return false;
  }
  return has_mmdit(folder, MmditRole::film);
}

int inspect_mmdit(const std::string& folder, bool graph, const Runtime& runtime) {
  constexpr VideoDenoiser::Extent kExtent{1, 33, 12, 21, 512};
  MmditFiles files = open_mmdit(folder, MmditRole::film);
  VideoDenoiser denoiser(files.config, files.weights, runtime);
  const MmditConfig& c = denoiser.config();
  const Executable& exe = denoiser.compiled(kExtent);
  if (graph) {
    std::printf("%s", to_text(exe.graph()).c_str());
    return 0;
  }
  std::printf("%s\n  film transformer, %lld + %lld blocks, %lld heads of %lld, %zu tensors, %.1f MiB\n", folder.c_str(),
              static_cast<long long>(c.depth), static_cast<long long>(c.single_depth), static_cast<long long>(c.heads),
              static_cast<long long>(c.head_dim()), denoiser.weights().size(),
              static_cast<double>(denoiser.weights().bytes()) / (1 << 20));
  std::printf("  attention on %s (--attention %s): transformer %s\n", device_name(runtime).c_str(),
              runtime.context.variant.c_str(), attention_of(exe).c_str());
  std::printf("  working memory besides the weights for 129 frames of 336x192: %.1f MiB\n",
              static_cast<double>(exe.arena_bytes()) / (1 << 20));
  return 0;
}

}  // namespace kinora::cli
