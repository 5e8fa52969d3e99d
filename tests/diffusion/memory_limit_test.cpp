// Limits of memory: amounts, what is left for weights, and whole models whose weights come and go.
#include "diffusion/memory_limit.h"

#include <cstring>

#include "diffusion/film_pipeline.h"
#include "film_folder.h"
#include "graph/host_device.h"
#include "models/mmdit_golden.h"

namespace kinora::test {
namespace {

TEST(MemoryLimit, Amounts) {
  EXPECT_EQ(parse_bytes("12GB"), 12000000000u);
  EXPECT_EQ(parse_bytes("1.5GiB"), size_t{3} << 29);
  EXPECT_EQ(parse_bytes("900 MB"), 900000000u);
  EXPECT_EQ(parse_bytes("4096"), 4096u);
  for (const char* bad : {"", "GB", "12 apples", "-1GB", "0", "nan", "inf GB", "1e30", "12GBs", "0x10"})
    EXPECT_THROW(parse_bytes(bad), Error) << bad;
}

TEST(MemoryLimit, IsSaidAsItIsGiven) {
  EXPECT_EQ(describe_bytes(parse_bytes("200MB")), "200.0 MB");
  EXPECT_EQ(describe_bytes(parse_bytes("1.5GB")), "1.5 GB");
}

TEST(MemoryLimit, LeavesRoomForWeights) {
  Runtime device{&cpu::backend(), context(1), DType::f32};
  device.context.device = std::make_shared<HostDevice>();
  ComponentMemory part{"the part", {.weights = 1000, .working = 100, .least_weights = 300, .streamed_working = 120}, 7};
  EXPECT_EQ(weights_budget(part, 1136, device, ""), 0u);  // a 32nd of it is spared
  EXPECT_EQ(weights_budget(part, 1134, device, ""), 979u);
  EXPECT_EQ(weights_budget(part, 433, device, ""), 300u);
  try {
    weights_budget(part, 432, device, "do less");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::resource);
    EXPECT_NE(std::string(error.what()).find("too small for the part: 1MB are needed"), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find("do less"), std::string::npos);
  }
}

// The transformer and the autoencoder with as little of their weights in memory as can be, on the host and on a device.
TEST(MemoryLimit, ModelsGiveTheSameWithStreamedWeights) {
  TempFolder temp;
  FilmFolder folder(temp.path("model"));
  for (bool device : {false, true}) {
    Runtime whole{&cpu::backend(), context(2), DType::f32}, little = whole;
    little.context = context(2);
    if (device) little.context.device = std::make_shared<HostDevice>(HostDevice::When::awaited);
    little.context.arena = std::make_shared<Arena>(little.context.device);
    little.context.stream = {.budget = 0, .chunk = 2048, .smallest = 256};
    MmditFiles files = open_mmdit(folder.path(), MmditRole::film);
    VideoDenoiser plain(files.config, files.weights, whole);
    VideoModelInputs in;
    in.latents = random_tensor({1, 12, 16}, 1);
    in.cond = random_tensor({1, 12, 20}, 2);
    in.text = random_tensor({1, 5, 32}, 3);
    in.pooled = random_tensor({1, 32}, 4);
    in.timestep = random_tensor({1}, 5, 0, 1);
    in.positions = MmditPositions::grid(2, 2, 3);
    Graph graph = plain.graph(VideoDenoiser::extent_of(in));
    MemoryNeed need = memory_need(graph, cpu::backend(), little.context);
    EXPECT_LT(need.least_weights, need.weights / 2);
    little.context.stream.budget = need.least_weights + 1024;
    VideoDenoiser streamed(files.config, files.weights, little);
    EXPECT_GT(streamed.compiled(VideoDenoiser::extent_of(in)).stream().chunks.size(), 5u);
    Tensor expected = plain.predict(in);
    for (int i = 0; i < 2; ++i) {
      Tensor got = streamed.predict(in);
      EXPECT_EQ(std::memcmp(got.raw(), expected.raw(), got.bytes()), 0) << device;
    }

    VideoAutoencoder decoder = load_video_autoencoder(folder.path(), whole);
    little.context.stream.budget = 0;
    ComponentMemory part = load_video_autoencoder(folder.path(), little).need(false, {2, 4, 4, 4});
    EXPECT_LT(part.need.least_weights, part.need.weights);
    little.context.stream.budget = part.need.least_weights + 1024;
    VideoAutoencoder streamed_decoder = load_video_autoencoder(folder.path(), little);
    Tensor latents = random_tensor({2, 4, 4, 4}, 6);
    Tensor film = decoder.decode(latents), again = streamed_decoder.decode(latents);
    EXPECT_EQ(std::memcmp(film.raw(), again.raw(), film.bytes()), 0) << device;
  }
}

TEST(MemoryLimit, FilmsAreCheckedBeforeTheyAreMade) {
  TempFolder temp;
  FilmFolder folder(temp.path("model"));
  LoadOptions options{.device = "cpu", .threads = 1};
  options.max_memory = memory_in_use(make_runtime("cpu", "auto", 1, nullptr)) + (size_t{250} << 20);
  FilmPipeline pipeline = FilmPipeline::load(folder.path(), options);
  FilmRequest r;
  r.prompt = "a star";
  Tensor made = pipeline.generate(r, [](const Tensor&) {}).latents;
  Tensor expected =
      FilmPipeline::load(folder.path(), {.device = "cpu", .threads = 1}).generate(r, [](const Tensor&) {}).latents;
  EXPECT_EQ(std::memcmp(made.raw(), expected.raw(), made.bytes()), 0);
  r.width = r.height = 512;
  r.frames = 33;
  bool worked = false;
  r.on_stage = [&](const StageReport&) { worked = true; };
  EXPECT_THROW(pipeline.generate(r, [](const Tensor&) {}), Error);
  EXPECT_FALSE(worked);
  std::vector<ComponentMemory> parts = pipeline.memory_plan(pipeline.complete(r));
  ASSERT_EQ(parts.size(), 4u);
  EXPECT_GT(parts[3].need.working, parts[0].need.working);
  r.tile = 32;
  r.tile_frames = 16;
  EXPECT_LT(pipeline.memory_plan(pipeline.complete(r))[3].need.working, parts[3].need.working / 4);
}

}  // namespace
}  // namespace kinora::test
