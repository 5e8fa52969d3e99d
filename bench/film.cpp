// Times decoding by a film autoencoder of latents drawn at random, and prints JSON:
//   bench_film MODEL FRAMES HEIGHT WIDTH [--device cuda] [--dtype auto] [--repeats 5] [--tile PIXELS] [--by-op]
// FRAMES, HEIGHT and WIDTH are those of the film. `decode_s` is from latents to all frames in the host's memory, tiles
// of PIXELS (the model's own by default, 0: none) and their blending included; `run_s` is one run of the graph, of the
// whole film or of the largest tile, with latents and frames on the device. Medians, after a warm-up.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "diffusion/video_autoencoder.h"
#include "graph/profile.h"

using namespace kinora;

namespace {

double median_seconds(int repeats, const std::function<void()>& body) {
  std::vector<double> seconds;
  for (int i = 0; i <= repeats; ++i) {
    auto start = std::chrono::steady_clock::now();
    body();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin() + 1, seconds.end());
  return seconds[static_cast<size_t>(1 + repeats / 2)];
}

struct Options {
  std::string device = "cuda", dtype = "auto";
  int repeats = 5;
  int64_t tile = -1;
  bool by_op = false;
};

Options read_options(int argc, char** argv) {
  Options o;
  for (int i = 5; i < argc; ++i) {
    std::string name = argv[i];
    if (name == "--by-op") {
      o.by_op = true;
      continue;
    }
    if (i + 1 == argc) fail(ErrorKind::usage, "no value for " + name);
    std::string value = argv[++i];
    if (name == "--device") {
      o.device = value;
    } else if (name == "--dtype") {
      o.dtype = value;
    } else if (name == "--repeats") {
      o.repeats = std::max(1, std::atoi(value.c_str()));
    } else if (name == "--tile") {
      o.tile = std::atoll(value.c_str());
    } else {
      fail(ErrorKind::usage, "unknown option " + name);
    }
  }
  return o;
}

void measure(int argc, char** argv) {
  Options o = read_options(argc, argv);
  Runtime runtime = make_runtime(o.device, o.dtype, 0, nullptr);
  VideoAutoencoder ae = load_video_autoencoder(argv[1], runtime);
  int64_t frames = std::atoll(argv[2]), height = std::atoll(argv[3]), width = std::atoll(argv[4]);
  ae.check_size(frames, height, width);
  if (o.tile >= 0) ae.tiling.space = o.tile > 0;
  if (o.tile > 0) ae.tiling.size = o.tile;
  int64_t ratio = ae.space_compression(), t = ae.latent_frames(frames), h = height / ratio, w = width / ratio;
  Tensor latents = CpuGenerator(1).randn({t, h, w, ae.latent_channels()});
  double decode = median_seconds(o.repeats, [&] { ae.decode(latents, [](const Tensor&) {}); });
  size_t peak = peak_device_memory(runtime);

  int64_t side = ae.tiling.space ? ae.tiling.size / ratio : std::max(h, w);
  Shape tile{t, std::min(h, side), std::min(w, side), ae.latent_channels()};
  Executable exe = compile(ae.graph(false, tile), *runtime.backend, runtime.context);
  Device* device = runtime.context.device.get();
  Tensor one = CpuGenerator(2).randn({1, tile[0], tile[1], tile[2], tile[3]});
  std::map<std::string, Tensor> feed{{"x", device ? device->to_device(one) : one}};
  double run = median_seconds(o.repeats, [&] {
    exe.run(feed, device ? Keep::on_device : Keep::on_host);
    if (device) device->wait();
  });
  if (o.by_op) std::fputs(profile_table("decode", exe, feed).c_str(), stderr);
  nlohmann::json report{{"device", describe(runtime)},
                        {"dtype", dtype_name(runtime)},
                        {"frames", frames},
                        {"height", height},
                        {"width", width},
                        {"decode_s", decode},
                        {"run_s", run},
                        {"run_arena_mib", exe.arena_bytes() >> 20},
                        {"device_peak_mib", peak >> 20}};
  std::printf("%s\n", report.dump().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: bench_film MODEL FRAMES HEIGHT WIDTH [OPTIONS]\n");
    return 2;
  }
  try {
    measure(argc, argv);
  } catch (const Error& error) {
    std::fprintf(stderr, "bench_film: %s\n", error.what());
    return 1;
  }
  return 0;
}
