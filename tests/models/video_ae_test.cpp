// The autoencoders of films against Open-Sora's: tests/golden/make_video_ae.py made the files.
#include <cstring>

#include "diffusion/video_autoencoder.h"
#include "golden.h"
#include "io/safetensors.h"
#include "nn/layers.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

Runtime runtime(int threads = 2) { return {&cpu::backend(), context(threads), DType::f32}; }

void expect_same(const Tensor& got, const Tensor& expected, const std::string& what) {
  expect_close(got, expected, DType::f32, kModelTerms, what);
}

VideoAutoencoder causal_model(const Golden& golden, int threads = 2) {
  return {read_causal_vae3d_config(golden.config), golden.weights, runtime(threads)};
}
VideoAutoencoder dc_ae_model(const Golden& golden) {
  return {read_video_dc_ae_config(golden.config), golden.weights, runtime()};
}

TEST(CausalVae3d, EncodesAndDecodesAsOpenSora) {
  Golden golden("vae3d");
  VideoAutoencoder model = causal_model(golden);
  Tensor film = golden.film("in.film"), noise = golden.film("in.noise");
  expect_same(model.encode(film), golden.film("out.latents"), "mode");
  expect_same(model.encode(film, noise), golden.film("out.sampled"), "sample");
  expect_same(model.encode(golden.film("in.picture")), golden.film("out.picture_latents"), "one frame");
  expect_same(model.decode(golden.film("in.latents")), golden.film("out.film"), "decode");
}

TEST(CausalVae3d, TilesAsOpenSora) {
  Golden weights("vae3d"), golden("vae3d_tiled");
  VideoAutoencoder model = causal_model(weights);
  model.tiling = {.space = true, .time = false, .size = 32, .frames = 16};
  expect_same(model.encode(golden.film("in.film")), golden.film("out.latents"), "encode, tiles of pictures");
  expect_same(model.decode(golden.film("in.latents")), golden.film("out.film"), "decode, tiles of pictures");
  model.tiling.time = true;
  expect_same(model.encode(golden.film("in.long")), golden.film("out.long_latents"), "encode, tiles of both");
  expect_same(model.decode(golden.film("in.long_latents")), golden.film("out.long"), "decode, tiles of both");
}

TEST(CausalVae3d, GivesFramesOutWhileItDecodes) {
  Golden weights("vae3d"), golden("vae3d_tiled");
  VideoAutoencoder model = causal_model(weights);
  model.tiling = {.space = true, .time = true, .size = 32, .frames = 16};
  std::vector<std::string> events;
  int64_t frames = 0;
  model.decode(
      golden.film("in.long_latents"),
      [&](const Tensor& part) {
        frames += part.shape()[0];
        events.push_back("frames to " + std::to_string(frames));
      },
      [&](int64_t done, int64_t total) {
        events.push_back("tile " + std::to_string(done) + " of " + std::to_string(total));
      });
  std::vector<std::string> expected{"tile 1 of 4", "tile 2 of 4", "frames to 13",
                                    "tile 3 of 4", "tile 4 of 4", "frames to 25"};
  EXPECT_EQ(events, expected);
}

TEST(CausalVae3d, SameBitsOnAnyNumberOfThreads) {
  Golden golden("vae3d");
  Tensor latents = golden.film("in.latents");
  Tensor one = causal_model(golden, 1).decode(latents), three = causal_model(golden, 3).decode(latents);
  EXPECT_EQ(std::memcmp(one.raw(), three.raw(), one.bytes()), 0);
}

// No bfloat16 result can be checked to the rounding of float32; it must be near.
TEST(CausalVae3d, RunsInBfloat16) {
  Golden golden("vae3d");
  VideoAutoencoder model(read_causal_vae3d_config(golden.config), golden.weights,
                         {&cpu::backend(), context(2), DType::bf16});
  expect_close(model.decode(golden.film("in.latents")), golden.film("out.film"), DType::bf16, 16, "bfloat16");
}

// Group norms aside, what its parts make of the first frames does not depend on the later ones, not even in the last
// bit.
TEST(CausalVae3d, ConvolutionAndAttentionLookAtNoLaterFrame) {
  Weights weights;
  weights.add("down.conv.weight", random_tensor({6, 4, 3, 3, 3}, 1));
  weights.add("down.conv.bias", random_tensor({6}, 2));
  Graph graph;
  Value x = graph.input("x", {1, 9, 6, 4, 4});
  Value h = causal_conv3d_layer(Params(graph, weights) / "down", x, 6, 3, {2, 2, 2});
  Value tokens = reshape(h, {1, 5 * 3 * 2, 1, 6});
  Value y = attention(tokens, tokens, tokens, {}, {.scale = 0.4, .causal = true, .block = 6});
  graph.output("y", reshape(y, {5, 3, 2, 6}));
  Tensor film = random_tensor({1, 9, 6, 4, 4}, 3), changed = film.clone();
  for (int64_t i = 5 * 6 * 4 * 4; i < film.numel(); ++i) changed.data<float>()[i] += 1;  // frames 5 to 8
  Tensor a = run_graph(graph, {{"x", film}}).at("y"), b = run_graph(graph, {{"x", changed}}).at("y");
  size_t seen = a.rows(0, 3).bytes();  // latent frame 2 ends with frame 4
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), seen), 0);
  EXPECT_NE(std::memcmp(a.rows(3, 4).raw(), b.rows(3, 4).raw(), a.rows(3, 4).bytes()), 0);
}

TEST(VideoDcAe, EncodesAndDecodesAsOpenSora) {
  Golden golden("dcae_video");
  VideoAutoencoder model = dc_ae_model(golden);
  model.tiling = {.space = false, .time = false};
  expect_same(model.encode(golden.film("in.film")), golden.film("out.latents"), "encode");
  expect_same(model.encode(golden.film("in.picture")), golden.film("out.picture_latents"), "encode one frame");
  expect_same(model.decode(golden.film("in.latents")), golden.film("out.film"), "decode");
  expect_same(model.decode(golden.film("in.latents1")), golden.film("out.picture"), "decode one frame");
}

TEST(VideoDcAe, TilesAsOpenSora) {
  Golden weights("dcae_video"), golden("dcae_video_tiled");
  VideoAutoencoder model = dc_ae_model(weights);
  EXPECT_TRUE(model.tiling.time && model.tiling.space && model.tiling.frames == 32);
  model.tiling = {.space = true, .time = true, .size = 32, .frames = 16};
  expect_same(model.encode(golden.film("in.film")), golden.film("out.latents"), "encode");
  expect_same(model.decode(golden.film("in.latents")), golden.film("out.film"), "decode");
}

// The last stretch of 7 latent frames in tiles of 4, every 3, would be a single one: it must not come out as one
// picture.
TEST(VideoDcAe, KeepsTheNumberOfFramesWhenOneLatentIsLeftOver) {
  Golden weights("dcae_video");
  VideoAutoencoder model = dc_ae_model(weights);
  model.tiling = {.space = true, .time = true, .size = 32, .frames = 16};
  Tensor film = model.decode(random_tensor({7, 1, 1, 8}, 5));
  EXPECT_EQ(film.shape(), Shape({model.film_frames(7), 8, 8, 3}));
  EXPECT_EQ(model.film_frames(7), 28);
}

TEST(FluxAe, EncodesAndDecodesAsOpenSora) {
  Golden golden("flux_ae");
  FluxAutoencoder model(read_flux_ae_config(golden.config), golden.weights, runtime());
  expect_same(model.encode(golden.channels_last("in.picture")), golden.channels_last("out.latents"), "encode");
  expect_same(model.decode(golden.channels_last("in.latents")), golden.channels_last("out.picture"), "decode");
}

TEST(VideoAutoencoder, SaysWhichFilmsFit) {
  Golden golden("vae3d"), golden_dc("dcae_video");
  VideoAutoencoder causal = causal_model(golden), dc_ae = dc_ae_model(golden_dc);
  auto refusal = [](VideoAutoencoder& model, int64_t frames, int64_t height, int64_t width) {
    return message_of([&] { model.encode(Tensor::zeros({frames, height, width, 3})); }, ErrorKind::usage);
  };
  EXPECT_NE(refusal(causal, 8, 16, 16).find("the nearest are 5 and 9"), std::string::npos)
      << refusal(causal, 8, 16, 16);
  EXPECT_NE(refusal(causal, 4, 16, 16).find("the nearest are 1 and 5"), std::string::npos)
      << refusal(causal, 4, 16, 16);
  EXPECT_NE(refusal(causal, 5, 20, 35).find("the nearest is 32x24"), std::string::npos) << refusal(causal, 5, 20, 35);
  EXPECT_NE(refusal(dc_ae, 9, 16, 16).find("the nearest are 8 and 12"), std::string::npos) << refusal(dc_ae, 9, 16, 16);
  EXPECT_NE(refusal(dc_ae, 3, 16, 16).find("the nearest are 1 and 4"), std::string::npos) << refusal(dc_ae, 3, 16, 16);
  auto latents = [&] { causal.decode(Tensor::zeros({2, 2, 2, 5})); };
  EXPECT_NE(message_of(latents, ErrorKind::input).find("[2, 2, 2, 5]"), std::string::npos);
  auto film = [&] { causal.encode(Tensor::zeros({1, 16, 16, 4})); };
  EXPECT_NE(message_of(film, ErrorKind::input).find("[1, 16, 16, 4]"), std::string::npos);
  auto noise = [&] { causal.encode(Tensor::zeros({1, 16, 16, 3}), Tensor::zeros({1, 2, 2, 3})); };
  EXPECT_NE(message_of(noise, ErrorKind::usage).find("[1, 2, 2, 3]"), std::string::npos);
  auto decode = [&] { causal.decode(Tensor::zeros({2, 2, 2, 4})); };
  causal.tiling.size = 30;
  EXPECT_NE(message_of(decode, ErrorKind::usage).find("multiples of 8 and 4"), std::string::npos);
  causal.tiling = {.space = false, .time = true, .size = 30, .frames = 20};  // a quarter of five latents
  EXPECT_NE(message_of(decode, ErrorKind::usage).find("in whole latents"), std::string::npos);
}

TEST(VideoAutoencoder, KnowsAFileByItsTensors) {
  TempFolder folder;
  Golden golden("vae3d"), flux("flux_ae");
  auto write = [&](const std::string& name, const Weights& weights) {
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const std::string& tensor : weights.names()) tensors.emplace_back(tensor, *weights.find(tensor));
    write_safetensors(folder.path(name), tensors);
  };
  write("diffusion_pytorch_model.safetensors", golden.weights);
  write("flux.safetensors", flux.weights);
  folder.write("config.json", golden.file.header().metadata.at("config"));
  VideoAutoencoder model = load_video_autoencoder(folder.path(), runtime());
  EXPECT_TRUE(model.causal());
  expect_same(model.decode(golden.film("in.latents")), golden.film("out.film"), "decode");
  auto load = [&](const std::string& name) {
    return [&, name] { load_video_autoencoder(folder.path(name), runtime()); };
  };
  EXPECT_NE(message_of(load("flux.safetensors"), ErrorKind::model).find("holds no film autoencoder"),
            std::string::npos);
  auto wrong = [&] { load_flux_autoencoder(folder.path("diffusion_pytorch_model.safetensors"), runtime()); };
  EXPECT_NE(message_of(wrong, ErrorKind::model).find("is not FLUX.1's autoencoder"), std::string::npos);
  TempFolder empty;
  auto none = [&] { load_video_autoencoder(empty.path(), runtime()); };
  EXPECT_NE(message_of(none, ErrorKind::model).find("hunyuan_vae.safetensors"), std::string::npos);
}

// Every tensor of the published files is asked for by its name and shape, and no other. All borrow the same zeros.
TEST(VideoAutoencoder, PublishedFilesFitTheirConfigs) {
  Config names = Config::load(source_folder() + "/tests/golden/video_ae_names.json");
  Tensor zeros = Tensor::zeros({1024 * 1024 * 27}, DType::bf16);
  auto owner = std::make_shared<Tensor>(zeros);
  auto weights_of = [&](const char* model, int64_t parameters) {
    Config list = names.child(model);
    Weights weights;
    int64_t total = 0;
    for (const std::string& name : list.keys()) {
      Shape shape(std::span<const int64_t>(list.integers(name, 1, 65536, {})));
      weights.add(name, Tensor(shape, DType::bf16, owner, owner->raw()));
      total += shape.numel();
    }
    EXPECT_EQ(total, parameters) << model;
    return weights;
  };
  VideoAutoencoder hunyuan(CausalVae3dConfig{}, weights_of("hunyuan", 246478803), runtime());
  VideoAutoencoder dc_ae(VideoDcAeConfig{}, weights_of("dc_ae", 459462147), runtime());
  FluxAutoencoder flux(FluxAeConfig{}, weights_of("flux", 83819683), runtime());
  EXPECT_EQ(hunyuan.latent_frames(129), 33);
  EXPECT_EQ(hunyuan.film_frames(33), 129);
  EXPECT_EQ(dc_ae.latent_frames(128), 32);
  EXPECT_EQ(dc_ae.space_compression(), 32);
  EXPECT_EQ(dc_ae.time_compression(), 4);
}

TEST(VideoAutoencoder, ReadsConfigsOfBothSpellings) {
  CausalVae3dConfig c = read_causal_vae3d_config(
      Config::parse(R"({"temporal_compression_ratio": 4, "scaling_factor": 0.5, "norm_num_groups": 16})", "c"));
  EXPECT_EQ(c.scaling_factor, 0.5);
  EXPECT_TRUE(!c.halves_time(0) && c.halves_time(1) && c.halves_time(2) && !c.halves_time(3));
  EXPECT_EQ(message_of([] { read_causal_vae3d_config(Config::parse(R"({"block_out_channels": [32, 32]})", "c")); },
                       ErrorKind::model)
                .substr(0, 11),
            "c: 2 blocks");
  EXPECT_NE(
      message_of([] { read_video_dc_ae_config(Config::parse(R"({"width_list": [32, 32]})", "c")); }, ErrorKind::model)
          .find("same length"),
      std::string::npos);
}

}  // namespace
}  // namespace kinora::test
