// The pipelines against diffusers: tools/mini/make_golden.py and tests/golden/make_pipelines.py made the files.
#include "diffusion/pipeline.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "io/safetensors.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

using Json = nlohmann::json;

const std::string kMini = KINORA_SOURCE_DIR "/models/kinora-mini";
const std::string kGolden = KINORA_SOURCE_DIR "/tests/golden/";
const char kApple[] = "a red apple left of a yellow star on a blue background";
constexpr int64_t kPipelineTerms = 1 << 16;  // sums that follow one another through a whole pipeline

Pipeline& mini() {
  static Pipeline pipeline = Pipeline::load(kMini, {.threads = 2});
  return pipeline;
}

class TinySprint : public testing::Test {
 protected:
  TinySprint() { copy_tiny_sprint(folder()); }
  std::string folder() const { return temp_.path("model"); }
  Pipeline load() const { return Pipeline::load(folder(), {.threads = 2}); }
  void edit_json(const std::string& file, const std::function<void(Json&)>& edit) {
    Json json = Json::parse(read_file(folder() + file, 1 << 20));
    edit(json);
    temp_.write("model" + file, json.dump());
  }
  // Rewrites a safetensors file with what `edit` makes of its tensors.
  void edit_tensors(const std::string& path, const std::function<void(std::map<std::string, Tensor>&)>& edit) {
    std::map<std::string, Tensor> tensors;
    {
      auto file = SafetensorsFile::open(folder() + path);
      for (const auto& entry : file.header().entries) tensors[entry.name] = file.tensor(entry).clone();
    }
    edit(tensors);
    write_safetensors(folder() + path, {tensors.begin(), tensors.end()});
  }
  void expect_model_error(const std::vector<std::string>& words) {
    try {
      Pipeline p = load();
      Request r;
      r.width = r.height = 32;
      p.generate(r);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::model) << error.what();
      for (const std::string& word : words)
        EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    }
  }
  TempFolder temp_;
};

void expect_prompt(const Conditioning& c, const SafetensorsFile& golden) {
  Tensor mask = golden.tensor("mask"), expected = golden.tensor("embeds").clone();
  // What stands behind the prompt is hidden by the mask; Kinora leaves it zero.
  int64_t width = expected.shape()[2];
  for (int64_t i = 0; i < expected.numel(); ++i)
    if (mask.data<float>()[i / width] == 0) expected.data<float>()[i] = 0;
  expect_close(c.mask, mask, DType::f32, 1, "mask");
  expect_close(c.hidden, expected, DType::f32, kPipelineTerms, "hidden states");
}

TEST(Mini, EncodesThePromptAsDiffusers) {
  expect_prompt(mini().encode_prompt(kApple, false), SafetensorsFile::open(kGolden + "mini_e2e.safetensors"));
}

TEST(Mini, DrawsThePixelsOfDiffusers) {
  auto golden = SafetensorsFile::open(kGolden + "mini_e2e.safetensors");
  Request r;
  r.prompt = kApple;
  r.latents = golden.tensor("noise");
  Result result = mini().generate(r);
  EXPECT_EQ(result.steps, 16);
  EXPECT_EQ(result.scheduler, "dpm++");
  Tensor picture = golden.tensor("picture");
  ASSERT_EQ(picture.numel(), static_cast<int64_t>(result.images.at(0).rgb.size()));
  int worst = 0;
  for (int64_t i = 0; i < picture.numel(); ++i)
    worst = std::max(worst, std::abs(picture.data<uint8_t>()[i] - result.images[0].rgb[static_cast<size_t>(i)]));
  EXPECT_LE(worst, 1);
}

// What a device brings back instead of float32.
TEST(Mini, DecodesToBytesAsToPixels) {
  auto golden = SafetensorsFile::open(kGolden + "mini_e2e.safetensors");
  Tensor latents = golden.tensor("noise").permuted({0, 2, 3, 1});
  Autoencoder& autoencoder = mini().autoencoder();
  Image expected = to_image(autoencoder.decode(latents), 0);
  Tensor bytes = autoencoder.decode_bytes(latents);
  EXPECT_EQ(bytes.shape(), (Shape{1, expected.height, expected.width, 3}));
  EXPECT_TRUE(std::equal(expected.rgb.begin(), expected.rgb.end(), bytes.data<uint8_t>()));
  latents.data<float>()[7] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(autoencoder.decode_bytes(latents), Error);
}

class MiniMore : public testing::Test {
 protected:
  Request request() const {
    Request r;
    r.prompt = kApple;
    r.negative_prompt = "a cat";
    r.steps = 3;
    r.guidance = 2.5;
    return r;
  }
  SafetensorsFile golden_ = SafetensorsFile::open(kGolden + "mini_more.safetensors");
};

TEST_F(MiniMore, TwoPicturesWithANegativePromptEqualDiffusers) {
  Request r = request();
  r.width = 192;
  r.height = 128;
  r.seeds = {5, 6};
  expect_close(mini().generate(r).latents, golden_.tensor("two"), DType::f32, kPipelineTerms, "two pictures");
}

TEST_F(MiniMore, EulerEqualsDiffusers) {
  Request r = request();
  r.width = r.height = 64;
  r.seeds = {7};
  r.scheduler = "euler";
  expect_close(mini().generate(r).latents, golden_.tensor("euler"), DType::f32, kPipelineTerms, "euler");
}

TEST_F(MiniMore, ImageToImageEqualsDiffusersParts) {
  Tensor picture = golden_.tensor("picture");
  for (auto [strength, steps] : {std::pair{"0.5", 6}, {"0.8", 4}}) {
    Request r = request();
    r.width = 96;
    r.height = 64;
    r.seeds = {9};
    r.steps = steps;
    r.strength = std::stod(strength);
    r.init_image = Image{96, 64, {picture.data<uint8_t>(), picture.data<uint8_t>() + picture.numel()}};
    expect_close(mini().generate(r).latents, golden_.tensor(std::string("img2img") + strength), DType::f32,
                 kPipelineTerms, strength);
  }
}

TEST(Mini, ReportsItsStages) {
  Request r;
  r.prompt = "a cat on a red background";
  r.steps = 2;
  r.width = r.height = 128;
  r.tiling = Tiling{96, 64};
  std::string seen;
  r.on_stage = [&](const StageReport& s) {
    seen += (s.stage == Stage::encode    ? "e"
             : s.stage == Stage::denoise ? "s"
                                         : "d") +
            std::to_string(s.done) + "/" + std::to_string(s.total) + " ";
  };
  mini().generate(r);
  EXPECT_EQ(seen, "e0/2 e1/2 e2/2 s0/2 s1/2 s2/2 d0/4 d1/4 d2/4 d3/4 d4/4 ");
}

// A weight that runs many times is kept packed; running again, in another size and again in the first gives the same.
TEST(Mini, PackedWeightsServeEverySize) {
  Request r;
  r.prompt = "a dog";
  r.steps = 1;
  r.width = r.height = 64;
  Pipeline fresh = Pipeline::load(kMini, {.dtype = "bfloat16", .threads = 2});
  Image first = fresh.generate(r).images[0];
  r.width = 96;
  Image wide = fresh.generate(r).images[0];
  r.width = 64;
  EXPECT_EQ(fresh.generate(r).images[0].rgb, first.rgb);
  Pipeline other = Pipeline::load(kMini, {.dtype = "bfloat16", .threads = 1});
  r.width = 96;
  EXPECT_EQ(other.generate(r).images[0].rgb, wide.rgb);
}

TEST(Mini, Float16DrawsNearlyTheSame) {
  Request r;
  r.prompt = "a dog";
  r.steps = 2;
  r.width = r.height = 128;
  Image exact = mini().generate(r).images[0];
  Image half = Pipeline::load(kMini, {.dtype = "float16", .threads = 2}).generate(r).images[0];
  double sum = 0;
  for (size_t i = 0; i < exact.rgb.size(); ++i) sum += std::abs(exact.rgb[i] - half.rgb[i]);
  EXPECT_LT(sum / static_cast<double>(exact.rgb.size()), 2);
}

TEST(Mini, BatchesThreadsAndOrderDoNotChangeAByte) {
  Request r;
  r.prompt = "a cat";
  r.steps = 2;
  r.seeds = {5, 6};
  Result both = mini().generate(r);
  Pipeline one_thread = Pipeline::load(kMini, {.threads = 1});
  for (size_t i = 0; i < 2; ++i) {
    r.seeds = {5 + i};
    EXPECT_EQ(mini().generate(r).images[0].rgb, both.images[i].rgb) << "alone " << i;
    EXPECT_EQ(one_thread.generate(r).images[0].rgb, both.images[i].rgb) << "one thread " << i;
  }
}

TEST(Mini, ImageToImageKeepsMoreOfThePictureAtLowStrength) {
  Request r;
  r.prompt = kApple;
  r.steps = 8;
  Image start = mini().generate(r).images[0];
  r.init_image = start;
  r.seeds = {9};
  auto distance = [&](double strength) {
    r.strength = strength;
    Image image = mini().generate(r).images[0];
    double sum = 0;
    for (size_t i = 0; i < image.rgb.size(); ++i) sum += std::abs(image.rgb[i] - start.rgb[i]);
    return sum / static_cast<double>(image.rgb.size());
  };
  double low = distance(0.25), high = distance(1);
  EXPECT_LT(low, 12);
  EXPECT_LT(low, high);
}

TEST(Mini, TilesGiveNearlyTheSamePicture) {
  Request r;
  r.prompt = "a dog";
  r.steps = 2;
  r.width = r.height = 384;
  Image whole = mini().generate(r).images[0];
  r.tiling = Tiling{256, 192};
  Image tiled = mini().generate(r).images[0];
  ASSERT_EQ(tiled.width, 384);
  double sum = 0;
  for (size_t i = 0; i < whole.rgb.size(); ++i) sum += std::abs(whole.rgb[i] - tiled.rgb[i]);
  EXPECT_LT(sum / static_cast<double>(whole.rgb.size()), 16);
}

TEST(Mini, RefusesImpossibleRequests) {
  auto expect_usage = [](const std::function<void(Request&)>& edit) {
    Request r;
    edit(r);
    try {
      mini().generate(r);
      FAIL() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage) << error.what();
    }
  };
  expect_usage([](Request& r) { r.width = 31; });
  expect_usage([](Request& r) { r.width = 100000; });
  expect_usage([](Request& r) { r.height = 40; });
  expect_usage([](Request& r) { r.steps = -1; });
  expect_usage([](Request& r) { r.scheduler = "scm"; });
  expect_usage([](Request& r) { r.scheduler = "heun"; });
  expect_usage([](Request& r) { r.seeds.clear(); });
  expect_usage([](Request& r) { r.guidance = NAN; });
}

TEST(Mini, StopsWhenAsked) {
  std::atomic<bool> stop{false};
  Pipeline p = Pipeline::load(kMini, {.threads = 2, .stop = &stop});
  Request r;
  r.steps = 1000;
  r.on_step = [&](const StepReport& report) { stop = report.step == 1; };
  try {
    p.generate(r);
    FAIL() << "not stopped";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::cancelled);
  }
}

TEST_F(TinySprint, EncodesThePromptWithTheComplexHumanInstruction) {
  Pipeline p = load();
  expect_prompt(p.encode_prompt("  A Red Apple, by Candlelight ", false),
                SafetensorsFile::open(kGolden + "pipelines.safetensors"));
}

TEST_F(TinySprint, EqualsDiffusersInOneTwoAndFourSteps) {
  auto golden = SafetensorsFile::open(kGolden + "pipelines.safetensors");
  Pipeline p = load();
  for (int64_t steps : {1, 2, 4}) {
    Request r;
    r.prompt = "  A Red Apple, by Candlelight ";
    r.width = r.height = 32;
    r.steps = steps;
    r.seeds = {3};
    expect_close(p.generate(r).latents, golden.tensor("sprint" + std::to_string(steps)), DType::f32, kPipelineTerms,
                 std::to_string(steps) + " steps");
  }
}

TEST_F(TinySprint, ImageToImageEqualsDiffusers) {
  auto golden = SafetensorsFile::open(kGolden + "pipelines.safetensors");
  Pipeline p = load();
  Tensor picture = golden.tensor("picture");
  for (const char* strength : {"0.5", "0.75"}) {
    Request r;
    r.prompt = "  A Red Apple, by Candlelight ";
    r.width = r.height = 32;
    r.steps = 4;
    r.seeds = {3};
    r.strength = std::stod(strength);
    r.init_image = Image{32, 32, {picture.data<uint8_t>(), picture.data<uint8_t>() + picture.numel()}};
    expect_close(p.generate(r).latents, golden.tensor(std::string("img2img") + strength), DType::f32, kPipelineTerms,
                 std::string("strength ") + strength);
  }
}

TEST_F(TinySprint, MissingTensorIsNamed) {
  edit_json("/transformer/config.json", [](Json& j) { j["num_layers"] = 3; });
  expect_model_error({"diffusion_pytorch_model.safetensors", "transformer_blocks.2."});
}

TEST_F(TinySprint, MisshapenTensorIsNamedWithBothShapes) {
  edit_tensors("/transformer/diffusion_pytorch_model.safetensors",
               [](auto& t) { t["proj_out.bias"] = Tensor::zeros({9}); });
  expect_model_error({"diffusion_pytorch_model.safetensors", "proj_out.bias", "[9]", "[8]"});
}

TEST_F(TinySprint, ExtraTensorIsNamed) {
  edit_tensors("/vae/diffusion_pytorch_model.safetensors", [](auto& t) { t["decoder.surprise"] = Tensor::zeros({9}); });
  expect_model_error({"diffusion_pytorch_model.safetensors", "decoder.surprise"});
}

TEST_F(TinySprint, NaNWeightsAreFound) {
  edit_tensors("/vae/diffusion_pytorch_model.safetensors",
               [](auto& t) { t["decoder.conv_out.bias"].template data<float>()[0] = NAN; });
  expect_model_error({"autoencoder", "not finite"});
  edit_tensors("/transformer/diffusion_pytorch_model.safetensors",
               [](auto& t) { t["proj_out.bias"].template data<float>()[0] = INFINITY; });
  expect_model_error({"transformer", "not finite"});
  edit_tensors("/text_encoder/model.safetensors", [](auto& t) { t["norm.weight"].template data<float>()[0] = NAN; });
  expect_model_error({"text encoder", "not finite"});
}

TEST_F(TinySprint, DamagedFilesOfEveryPartAreRefused) {
  namespace fs = std::filesystem;
  for (const char* file : {"/transformer/diffusion_pytorch_model.safetensors",
                           "/vae/diffusion_pytorch_model.safetensors", "/text_encoder/model.safetensors"}) {
    uintmax_t size = fs::file_size(folder() + file);
    fs::resize_file(folder() + file, size - 1);
    expect_model_error({file + 1, "cut short"});
    fs::resize_file(folder() + file, size);  // the lost byte is zero now: a whole file again
    EXPECT_NO_THROW(load());
  }
  for (const char* file :
       {"/model_index.json", "/transformer/config.json", "/vae/config.json", "/text_encoder/config.json",
        "/scheduler/scheduler_config.json", "/tokenizer/tokenizer.json"}) {
    std::string whole = read_file(folder() + file, size_t{64} << 20);
    for (const std::string& bad : {std::string(), whole.substr(0, whole.size() / 2), std::string("[1]"),
                                   "{\"a\":" + std::string(200, '[') + std::string(200, ']') + "}"}) {
      temp_.write(std::string("model") + file, bad);
      expect_model_error({file + 1});
    }
    temp_.write(std::string("model") + file, whole);
  }
  EXPECT_NO_THROW(load());
}

TEST_F(TinySprint, ConfigsThatDisagreeWithTheWeightsAreRefused) {
  auto with = [&](const std::string& file, const std::string& key, const Json& value,
                  const std::vector<std::string>& words) {
    std::string whole = read_file(folder() + file, 1 << 20);
    edit_json(file, [&](Json& j) { j[key] = value; });
    expect_model_error(words);
    temp_.write("model" + file, whole);
  };
  with("/transformer/config.json", "num_attention_heads", 3, {"config.json"});
  with("/transformer/config.json", "num_layers", 1, {"transformer_blocks.1"});
  with("/transformer/config.json", "num_layers", 1000000, {"num_layers"});
  with("/transformer/config.json", "guidance_embeds", false, {"time_embed"});
  with("/transformer/config.json", "mlp_ratio", 3.0, {"ff.conv_inverted"});
  with("/transformer/config.json", "qk_norm", nullptr, {"norm_q"});
  with("/vae/config.json", "decoder_block_out_channels", {8, 16, 32}, {"decoder"});
  with("/vae/config.json", "latent_channels", 4, {"latent channels"});
  with("/vae/config.json", "scaling_factor", 0, {"scaling_factor"});
  with("/text_encoder/config.json", "num_hidden_layers", 3, {"layer_types"});
  with("/text_encoder/config.json", "vocab_size", 17, {"embed_tokens"});
  with("/text_encoder/config.json", "head_dim", 7, {"head_dim"});
}

TEST_F(TinySprint, ComponentsMustFitTogether) {
  edit_json("/transformer/config.json", [](Json& j) { j["caption_channels"] = 25; });
  expect_model_error({"caption_channels"});
}

TEST_F(TinySprint, AnotherModelFamilyIsRefused) {
  edit_json("/model_index.json", [](Json& j) { j["transformer"][1] = "FluxTransformer2DModel"; });
  expect_model_error({"FluxTransformer2DModel"});
}

TEST_F(TinySprint, ShardsAndVariantsAreFound) {
  namespace fs = std::filesystem;
  Request r;
  r.width = r.height = 32;
  std::vector<uint8_t> whole = load().generate(r).images[0].rgb;
  std::string path = folder() + "/transformer/diffusion_pytorch_model";
  Json map = Json::object();
  {
    auto file = SafetensorsFile::open(path + ".safetensors");
    std::vector<std::pair<std::string, Tensor>> halves[2];
    for (const auto& entry : file.header().entries) {
      size_t half = std::hash<std::string>()(entry.name) % 2;
      halves[half].emplace_back(entry.name, file.tensor(entry).clone());
      map[entry.name] = half ? "b.safetensors" : "a.safetensors";
    }
    write_safetensors(folder() + "/transformer/a.safetensors", halves[0]);
    write_safetensors(folder() + "/transformer/b.safetensors", halves[1]);
  }
  fs::remove(path + ".safetensors");
  temp_.write("model/transformer/diffusion_pytorch_model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  EXPECT_EQ(load().generate(r).images[0].rgb, whole);

  map["no.such.tensor"] = "a.safetensors";
  temp_.write("model/transformer/diffusion_pytorch_model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  expect_model_error({"a.safetensors", "no.such.tensor"});
  map.erase("no.such.tensor");
  map["proj_out.bias"] = "../../secret.safetensors";
  temp_.write("model/transformer/diffusion_pytorch_model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  expect_model_error({"plain file names"});

  fs::rename(folder() + "/vae/diffusion_pytorch_model.safetensors",
             folder() + "/vae/diffusion_pytorch_model.fp16.safetensors");
  fs::remove(folder() + "/transformer/diffusion_pytorch_model.safetensors.index.json");
  fs::copy(kGolden + "tiny_sprint/transformer/diffusion_pytorch_model.safetensors", path + ".fp16.safetensors");
  EXPECT_EQ(load().generate(r).images[0].rgb, whole);
}

// diffusers' ASPECT_RATIO_1024_BIN and _512_BIN.
TEST(Resolution, NearestPublishedBin) {
  EXPECT_EQ(nearest_bin(1024, 1024, 32), (std::pair<int64_t, int64_t>(1024, 1024)));
  EXPECT_EQ(nearest_bin(1920, 1080, 32), (std::pair<int64_t, int64_t>(1344, 768)));
  EXPECT_EQ(nearest_bin(512, 2048, 32), (std::pair<int64_t, int64_t>(512, 2048)));
  EXPECT_EQ(nearest_bin(640, 640, 16), (std::pair<int64_t, int64_t>(512, 512)));
  EXPECT_EQ(nearest_bin(777, 333, 8), (std::pair<int64_t, int64_t>(777, 333)));
}

}  // namespace
}  // namespace kinora::test
