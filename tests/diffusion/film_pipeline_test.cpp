// The parts of Open-Sora 2.0 joined, with tiny random models in the published layout.
#include "diffusion/film_pipeline.h"

#include <cmath>
#include <cstring>

#include "film_folder.h"
#include "io/safetensors.h"

namespace kinora::test {
namespace {

class Films : public testing::Test {
 protected:
  Films() : folder_(temp_.path("model")) {}

  FilmPipeline open() { return FilmPipeline::load(folder_.path(), {.device = "cpu", .threads = 2}); }
  static FilmRequest request() {
    FilmRequest r;
    r.prompt = "a star";
    return r;
  }
  static Image picture() { return {32, 32, std::vector<uint8_t>(32 * 32 * 3, 200)}; }

  TempFolder temp_;
  FilmFolder folder_;
};

void ignore_frames(const Tensor&) {}

TEST_F(Films, RunsThatDoNotCountAreLeftOut) {
  FilmPipeline pipeline = open();
  FilmRequest text = request(), pictured = request();
  text.steps = pictured.steps = 14;  // guided on the first ten and on two of the rest
  pictured.first = picture();
  for (auto [r, forwards] : {std::pair{&text, 26}, std::pair{&pictured, 38}}) {
    FilmResult with_skip = pipeline.generate(*r, ignore_frames);
    r->skip = false;
    FilmResult without = pipeline.generate(*r, ignore_frames);
    EXPECT_EQ(with_skip.forwards, forwards);
    EXPECT_EQ(without.forwards, 3 * 14);
    EXPECT_EQ(std::memcmp(with_skip.latents.raw(), without.latents.raw(), without.latents.bytes()), 0);
  }
}

TEST_F(Films, APictureGivenIsKeptAsItWasEncoded) {
  FilmPipeline pipeline = open();
  FilmRequest r = request();
  r.first = picture();
  Tensor latents = pipeline.generate(r, ignore_frames).latents;
  VideoAutoencoder autoencoder = load_video_autoencoder(folder_.path(), pipeline.runtime());
  Tensor given = autoencoder.encode(to_tensor(picture()));
  EXPECT_EQ(std::memcmp(latents.raw(), given.raw(), given.bytes()), 0);
  r.last = r.first;
  r.first.reset();
  latents = pipeline.generate(r, ignore_frames).latents;
  EXPECT_EQ(std::memcmp(latents.rows(1, 2).raw(), given.raw(), given.bytes()), 0);
}

// Text encoders go before the transformer and are not needed again for the same texts.
TEST_F(Films, MemoryIsFreedAndTextsAreRemembered) {
  FilmPipeline pipeline = open();
  std::vector<size_t> held;
  FilmRequest r = request();
  r.on_stage = [&](const StageReport& report) {
    if (report.done == 0) held.push_back(pipeline.runtime().context.arena->size());
  };
  Tensor first = pipeline.generate(r, ignore_frames).latents;
  EXPECT_EQ(held, std::vector<size_t>(3, 0));
  EXPECT_EQ(pipeline.runtime().context.arena->size(), 0u);
  std::filesystem::remove_all(folder_.path() + "/google");
  std::filesystem::remove_all(folder_.path() + "/openai");
  Tensor second = pipeline.generate(r, ignore_frames).latents;
  EXPECT_EQ(std::memcmp(first.raw(), second.raw(), first.bytes()), 0);
  r.prompt = "a cat";
  EXPECT_THROW(pipeline.generate(r, ignore_frames), Error);
}

TEST_F(Films, ADraftIsEnlargedAndRefined) {
  FilmPipeline pipeline = open();
  FilmRequest r = request();
  r.width = r.height = 64;
  r.steps = 8;
  FilmResult direct = pipeline.generate(r, ignore_frames);
  r.from_resolution = "32px";
  r.refine_strength = 1;  // nothing of the draft is left
  FilmResult from_noise = pipeline.generate(r, ignore_frames);
  EXPECT_EQ(std::memcmp(direct.latents.raw(), from_noise.latents.raw(), direct.latents.bytes()), 0);
  EXPECT_EQ(from_noise.forwards, 2 * direct.forwards);

  // One last step from so little noise stays near the draft, which is the small film.
  r.refine_strength = 0.01;
  FilmResult near = pipeline.generate(r, ignore_frames);
  EXPECT_EQ(near.forwards, direct.forwards + 2);
  EXPECT_GT(near.times.draft, 0);
  FilmRequest small = request();
  small.steps = 8;
  Tensor draft = pipeline.generate(small, ignore_frames).latents, last = near.latents;
  Tensor enlarged = resize_latents(draft.reshaped({1, 2, 4, 4, 4}), 8, 8);
  auto distance = [&](const Tensor& a) {
    double sum = 0;
    for (int64_t i = 0; i < a.numel(); ++i) sum += std::abs(a.data<float>()[i] - last.data<float>()[i]);
    return sum;
  };
  EXPECT_LT(distance(enlarged), distance(direct.latents));

  r.first = picture();  // given pictures are encoded at either size
  Tensor pictured = pipeline.generate(r, ignore_frames).latents;
  VideoAutoencoder autoencoder = load_video_autoencoder(folder_.path(), pipeline.runtime());
  Tensor given = autoencoder.encode(to_tensor(fill_crop(picture(), 64, 64)));
  EXPECT_EQ(std::memcmp(pictured.raw(), given.raw(), given.bytes()), 0);
  for (const char* wrong : {"64px", "128px", "16x80", "64x64", "32x33", "32x", "x32", "big", "0x0", "-32x32"}) {
    r.from_resolution = wrong;
    EXPECT_THROW(pipeline.complete(r), Error) << wrong;
  }
}

TEST_F(Films, RequestsAreCompletedFromTheFolder) {
  folder_.write("kinora.json", "{}");
  FilmRequest r = open().complete(request());
  EXPECT_EQ(r.width, 336);  // 256px, 16:9
  EXPECT_EQ(r.height, 192);
  EXPECT_EQ(r.frames, 129);
  EXPECT_EQ(r.steps, 50);
  EXPECT_EQ(r.fps, 24);
  EXPECT_EQ(r.motion_score, 4);
  EXPECT_EQ(r.guidance, 7.5);
  EXPECT_EQ(r.image_guidance, 3);
  EXPECT_EQ(r.flow_shift, flow_shift(21 * 12, 33));
  r = request();
  r.resolution = "768px";
  r.aspect = "9:16";
  r = open().complete(r);
  EXPECT_EQ(r.width, 576);
  EXPECT_EQ(r.height, 1024);
}

// Frames come as they are decoded when there are tiles in time.
TEST_F(Films, FramesAreGivenOutInParts) {
  FilmPipeline pipeline = open();
  FilmRequest r = request();
  r.frames = 29;
  r.tile_frames = 16;
  std::vector<int64_t> parts;
  pipeline.generate(r, [&](const Tensor& frames) {
    EXPECT_EQ(frames.shape().with(0, 1), (Shape{1, 32, 32, 3}));
    parts.push_back(frames.shape()[0]);
  });
  EXPECT_EQ(parts, (std::vector<int64_t>{13, 12, 4}));
}

// kinora-mini-video against PyTorch (tools/mini-video/make_golden.py): prompt, noise, sampling and decoding.
TEST(MiniVideo, MatchesPyTorch) {
  const std::string folder = source_folder() + "/models/kinora-mini-video";
  const std::string golden_file = source_folder() + "/tests/golden/mini_video_e2e.safetensors";
  constexpr int64_t kTerms = 1 << 16;  // sums that follow one another through the whole pipeline
  auto golden = SafetensorsFile::open(golden_file);
  FilmPipeline pipeline = FilmPipeline::load(folder, {.device = "cpu", .threads = 2});
  const std::map<std::string, std::string>& said = golden.header().metadata;
  FilmRequest r;
  r.prompt = said.at("prompt");
  r.seed = std::stoull(said.at("seed"));
  r.steps = std::stoll(said.at("steps"));
  r.guidance = std::stod(said.at("guidance"));
  std::vector<Image> frames;
  auto take = [&](const Tensor& part) {
    for (int64_t i = 0; i < part.shape()[0]; ++i) frames.push_back(to_image(part, i));
  };
  expect_close(pipeline.generate(r, take).latents, golden.tensor("latents"), DType::f32, kTerms, "latents");
  ASSERT_EQ(frames.size(), 33u);
  Tensor ends = golden.tensor("frames");  // the first and the last, u8
  int worst = 0;
  for (size_t i = 0, n = frames[0].rgb.size(); i < 2 * n; ++i) {
    uint8_t got = i < n ? frames.front().rgb[i] : frames.back().rgb[i - n];
    worst = std::max(worst, std::abs(ends.data<uint8_t>()[i] - got));
  }
  EXPECT_LE(worst, 1);
}

}  // namespace
}  // namespace kinora::test
