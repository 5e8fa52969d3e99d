// kinora eval of the video transformer and of Flux: one run on tensors named and shaped as in Open-Sora's code.
#include "cli.h"
#include "diffusion/video_denoiser.h"
#include "io/safetensors.h"

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
                                              const SafetensorsFile& in, const Runtime& runtime) {
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
  return {"velocity", denoiser.predict(run)};
}

}  // namespace kinora::cli
