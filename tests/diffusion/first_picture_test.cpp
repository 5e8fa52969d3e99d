// The picture that a film begins with, by tiny random models of either kind.
#include "diffusion/first_picture.h"

#include "core/rng.h"
#include "diffusion/film_pipeline.h"
#include "film_folder.h"

namespace kinora::test {
namespace {

class FirstPictures : public testing::Test {
 protected:
  FirstPictures() : folder_(temp_.path("model")) { folder_.add_flux(); }
  TempFolder temp_;
  FilmFolder folder_;
};

// Against the parts that the goldens hold to the reference: the sampler with guidance as an input, Flux's autoencoder.
TEST_F(FirstPictures, FluxDrawsThem) {
  FilmPipeline pipeline = FilmPipeline::load(folder_.path(), {.device = "cpu", .threads = 2});
  VideoText text = pipeline.encode_texts({"a star"})[0];
  PictureRequest r{
      .prompt = "a star", .text = text, .width = 48, .height = 32, .resolution = "32px", .steps = 3, .seed = 5};
  const Runtime& runtime = pipeline.runtime();
  Image drawn = draw_first_picture(folder_.path(), r, runtime, runtime);
  ASSERT_EQ(drawn.width, 40);  // 32px of 3:2, in fours
  ASSERT_EQ(drawn.height, 28);

  MmditFiles files = open_mmdit(folder_.path(), MmditRole::picture);
  VideoDenoiser flux(files.config, std::move(files.weights), runtime);
  FluxAutoencoder autoencoder = load_flux_autoencoder(folder_.path(), runtime);
  VideoShape shape = video_shape({4, 4, 2, 2, true}, 40, 28, 1);
  VideoSampleInputs in;
  in.latents = pack_latents(CpuGenerator(5).randn({1, 4, 1, 14, 20}).permuted({0, 2, 3, 4, 1}), 2);
  in.prompt = text;
  in.positions = MmditPositions::grid(1, 7, 10);
  VideoSampleOptions options;
  double shift = 1 + 2.0 * (70 - 256) / 3840;  // a line through 1 at 256 tokens and 3 at 4096
  options.levels = flow_levels(3, shift);
  options.embedded_guidance = 4;
  Tensor latents = unpack_latents(sample_film(flux, in, options).latents, shape);
  Image expected = to_image(autoencoder.decode(latents.reshaped({1, 14, 20, 4})));
  EXPECT_EQ(drawn.rgb, expected.rgb);
}

TEST_F(FirstPictures, FilmsBeginWithThem) {
  FilmPipeline pipeline = FilmPipeline::load(folder_.path(), {.device = "cpu", .threads = 2});
  copy_tiny_sprint(temp_.path("sana"));
  for (std::string model : {folder_.path(), temp_.path("sana")}) {
    FilmRequest r;
    r.prompt = "a star";
    r.first_picture = model;
    r.picture_resolution = "64x64";
    Tensor made = pipeline.generate(r, [](const Tensor&) {}).latents;
    PictureRequest p{.prompt = r.prompt, .width = 32, .height = 32, .resolution = "64x64", .steps = 3};
    p.text = pipeline.encode_texts({"a star"})[0];
    FilmRequest given = r;
    given.first = draw_first_picture(model, p, pipeline.runtime(), pipeline.runtime());
    EXPECT_EQ(given.first->width, 64);
    given.first_picture = given.picture_resolution = "";
    Tensor expected = pipeline.generate(given, [](const Tensor&) {}).latents;
    EXPECT_EQ(std::memcmp(made.raw(), expected.raw(), expected.bytes()), 0) << model;
  }
}

// Open-Sora's own sizes: the table of training, as it uses for pictures.
TEST_F(FirstPictures, HaveTheReferencesSize) {
  FilmPipeline pipeline = FilmPipeline::load(folder_.path(), {.device = "cpu", .threads = 2});
  FilmRequest r;
  r.prompt = "a star";
  r.first_picture = folder_.path();
  for (auto [aspect, size] : {std::pair{"16:9", "1024x576"}, {"1:1", "768x768"}, {"9:16", "576x1024"}}) {
    r.resolution = "64px";
    r.aspect = aspect;
    EXPECT_EQ(pipeline.complete(r).picture_resolution, size);
  }
}

TEST_F(FirstPictures, MustFitTheFilm) {
  FilmRequest r;
  r.prompt = "a star";
  auto refuses = [&](const std::string& word) {
    try {
      FilmPipeline::load(folder_.path(), {.device = "cpu", .threads = 2}).complete(r);
      ADD_FAILURE() << word;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  r.picture_resolution = "64px";
  refuses("goes with a model");
  r.first_picture = temp_.path("none");
  refuses("model_index.json");
  r.first_picture = folder_.path();
  r.first = Image{32, 32, std::vector<uint8_t>(32 * 32 * 3)};
  refuses("not both");
  r.first.reset();
  r.frames = 1;
  refuses("too short");
  r.frames = 5;
  std::filesystem::remove(folder_.path() + "/flux1-dev-ae.safetensors");
  refuses("flux1-dev-ae.safetensors");
  folder_.add_flux();
  std::filesystem::copy(folder_.path() + "/Open_Sora_v2.json", folder_.path() + "/flux1-dev.json",
                        std::filesystem::copy_options::overwrite_existing);
  std::filesystem::copy(folder_.path() + "/Open_Sora_v2.safetensors", folder_.path() + "/flux1-dev.safetensors",
                        std::filesystem::copy_options::overwrite_existing);
  refuses("no transformer of FLUX.1-dev");
}

}  // namespace
}  // namespace kinora::test
