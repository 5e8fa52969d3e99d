#include "diffusion/device_sampler.h"

#include <memory>
#include <optional>

#include "graph/split.h"
#include "ops/elementwise.h"
#include "ops/shaping.h"

namespace kinora {
namespace {

// The rows of the table that one step reads: StepCoefficients and the guidance scale.
enum Row { kInput, kGuidance, kCleanX, kCleanOutput, kNextX, kNextClean, kNextPrevious, kNextNoise, kRows };

Tensor coefficient_table(const DeviceLoop& loop) {
  std::vector<float> table;
  for (const StepCoefficients& s : loop.steps) {
    for (float value :
         {s.input, loop.guidance, s.clean_x, s.clean_output, s.next_x, s.next_clean, s.next_previous, s.next_noise}) {
      table.push_back(value);
    }
  }
  return Tensor::from({static_cast<int64_t>(loop.steps.size()), kRows}, table);
}

// [steps, runs]: what the model is told of each step's time.
Tensor timestep_table(const DeviceLoop& loop, const SanaConfig& config) {
  int64_t runs = loop.caption.shape()[0];
  auto scale = static_cast<float>(config.timestep_scale);
  std::vector<float> times;
  for (const StepCoefficients& step : loop.steps) times.insert(times.end(), size_t(runs), step.timestep * scale);
  return Tensor::from({static_cast<int64_t>(loop.steps.size()), runs}, times);
}

// What the first step starts from, and what is the same in all of them.
std::map<std::string, Tensor> constant_inputs(const DeviceLoop& loop, const SanaConfig& config) {
  int64_t runs = loop.caption.shape()[0];
  auto embedded = static_cast<float>(config.guidance_embeds_scale) * loop.guidance;
  return {{"latents", loop.latents},
          {"previous", Tensor::zeros(loop.latents.shape())},
          {"caption", loop.caption},
          {"lengths", loop.lengths},
          {"guidance", Tensor::from({runs}, std::vector<float>(size_t(runs), embedded))}};
}

struct LoopShape {
  int64_t batch, height, width, tokens;
  bool guided, noisy;
};

Graph build_step(const Denoiser& denoiser, const LoopShape& shape) {
  const SanaConfig& c = denoiser.config();
  Graph graph;
  Shape latent{shape.batch, shape.height, shape.width, c.in_channels};
  int64_t runs = shape.guided ? 2 * shape.batch : shape.batch;
  Value table = graph.input("coefficients", {kRows});
  auto coefficient = [&](Row row) { return reshape(slice(table, 0, row, row + 1), {1, 1, 1, 1}); };
  Value x = graph.input("latents", latent), previous = graph.input("previous", latent);
  Value scaled = x * coefficient(kInput);

  SanaInputs in;
  in.latents = cast(shape.guided ? concat({scaled, scaled}, 0) : scaled, denoiser.dtype());
  in.timestep = graph.input("timestep", {runs});
  if (c.guidance_embeds) in.guidance = graph.input("guidance", {runs});
  in.caption = cast(graph.input("caption", {runs, shape.tokens, c.caption_channels}), denoiser.dtype());
  in.lengths = graph.input("lengths", {runs}, DType::i32);
  Value output = cast(build_sana(Params(graph, denoiser.prepared_weights()), c, in), DType::f32);
  output = slice(output, 3, 0, c.in_channels);  // a learned sigma, when there is one, follows and is not used
  if (shape.guided) {
    Value plain = slice(output, 0, 0, shape.batch), prompted = slice(output, 0, shape.batch, runs);
    output = plain + (prompted - plain) * coefficient(kGuidance);
  }
  Value clean = x * coefficient(kCleanX) + output * coefficient(kCleanOutput);
  Value next = x * coefficient(kNextX) + clean * coefficient(kNextClean) + previous * coefficient(kNextPrevious);
  if (shape.noisy) next = next + graph.input("noise", latent) * coefficient(kNextNoise);
  graph.output("clean", clean);
  graph.output("latents", next);
  return graph;
}

}  // namespace

LoopResult DeviceSampler::run(const DeviceLoop& loop) {
  const Runtime& runtime = denoiser_.runtime();
  Device& device = *runtime.context.device;
  const Shape& s = loop.latents.shape();
  bool noisy = false;
  for (const StepCoefficients& step : loop.steps) noisy = noisy || step.next_noise != 0;
  LoopShape shape{s[0], s[1], s[2], loop.caption.shape()[1], loop.guided, noisy};
  std::vector<int64_t> key{shape.batch, shape.height, shape.width, shape.tokens, shape.guided, shape.noisy};
  std::optional<Split> halves;
  auto half = [&](Graph Split::*which) {
    if (!halves) {
      // Of the graph as the backend wants it, where the projections of all layers' captions are few and large.
      halves.emplace(split(apply_passes(build_step(denoiser_, shape), *runtime.backend),
                           {"coefficients", "latents", "previous", "timestep", "noise"}));
    }
    return std::move(*halves.*which);
  };
  const Executable& before = befores_.get(key, runtime, [&] { return half(&Split::before); });
  const Executable& exe = steps_.get(key, runtime, [&] { return half(&Split::after); });

  int64_t runs = loop.caption.shape()[0], count = static_cast<int64_t>(loop.steps.size());
  Tensor all_times = device.to_device(timestep_table(loop, denoiser_.config()));
  Tensor all_coefficients = device.to_device(coefficient_table(loop));
  std::map<std::string, Tensor> feed = constant_inputs(loop, denoiser_.config());
  for (auto& [name, tensor] : feed) tensor = device.to_device(tensor);
  feed.merge(before.run(feed, Keep::on_device));

  // What is shown lags one step behind what is enqueued, so that the device never waits for the host.
  struct Shown {
    std::unique_ptr<Device::Mark> mark;
    size_t done = 0;
    Tensor latents, clean;
  };
  Shown pending;
  auto show = [&] {
    if (!pending.mark) return;
    pending.mark->wait();
    loop.on_step(pending.done, pending.latents, pending.clean);
    pending = Shown();
  };
  LoopResult result;
  for (int64_t i = 0; i < count; ++i) {
    feed["coefficients"] = all_coefficients.rows(i, i + 1).reshaped({kRows});
    feed["timestep"] = all_times.rows(i, i + 1).reshaped({runs});
    if (noisy) feed["noise"] = device.to_device(loop.noise(s));
    std::map<std::string, Tensor> out = exe.run(feed, Keep::on_device);
    result = {out.at("latents"), out.at("clean")};
    feed["latents"] = result.latents;
    feed["previous"] = result.clean;
    if (!loop.on_step) continue;
    show();
    pending = Shown{device.mark(), static_cast<size_t>(i) + 1, result.latents, result.clean};
  }
  show();
  return result;
}

}  // namespace kinora
