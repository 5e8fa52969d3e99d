#include "diffusion/film_preview.h"

#include "film_folder.h"

namespace kinora::test {
namespace {

// Colours that are a linear function of the latents come back.
TEST(FilmPreview, FindsTheColours) {
  constexpr int64_t kRows = 200, kChannels = 5;
  Tensor latents = random_tensor({kRows, kChannels}, 1), map = random_tensor({kChannels, 3}, 2, -0.15f, 0.15f);
  Tensor colours({kRows, 3}, DType::f32);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < 3; ++c) {
      float& v = colours.data<float>()[r * 3 + c];
      v = 0.1f * static_cast<float>(c);
      for (int64_t i = 0; i < kChannels; ++i)
        v += latents.data<float>()[r * kChannels + i] * map.data<float>()[i * 3 + c];
    }
  }
  LatentColours fitted = LatentColours::fit(latents, colours);
  Image image = fitted.picture(latents.reshaped({10, 20, kChannels}));
  Image expected = to_image(colours.reshaped({1, 10, 20, 3}));
  ASSERT_EQ(image.width, 20);
  for (size_t i = 0; i < image.rgb.size(); ++i) EXPECT_NEAR(image.rgb[i], expected.rgb[i], 1);
}

// With fewer examples than channels, something finite.
TEST(FilmPreview, StandsTooFewExamples) {
  Tensor latents = random_tensor({4, 16}, 1), colours = random_tensor({4, 3}, 2);
  Image image = LatentColours::fit(latents, colours).picture(latents.reshaped({2, 2, 16}));
  Image expected = to_image(colours.reshaped({1, 2, 2, 3}));
  for (size_t i = 0; i < image.rgb.size(); ++i) EXPECT_NEAR(image.rgb[i], expected.rgb[i], 1);
}

TEST(FilmPreview, IsAStripOfFrames) {
  TempFolder temp;
  for (bool causal : {true, false}) {
    FilmFolder folder(temp.path(causal ? "causal" : "other"), causal);
    Runtime runtime{&cpu::backend(), context(2), DType::f32};
    VideoAutoencoder autoencoder = load_video_autoencoder(folder.path(), runtime);
    LatentColours colours = LatentColours::fit(autoencoder);
    Tensor latents = random_tensor({9, 4, 6, autoencoder.latent_channels()}, 3);
    Image strip = preview_strip(colours, latents);
    EXPECT_EQ(strip.width, 5 * (48 + 4) - 4);
    EXPECT_EQ(strip.height, 32);
    EXPECT_EQ(strip.rgb[48 * 3], 255);  // between the first two
    EXPECT_EQ(preview_strip(colours, latents.rows(0, 1)).width, 48);
    Image last = colours.picture(latents.rows(8, 9).reshaped({4, 6, autoencoder.latent_channels()}));
    Image part = resize_bicubic(last, 48, 32);
    EXPECT_TRUE(std::equal(part.rgb.end() - 48 * 3, part.rgb.end(), strip.rgb.end() - 48 * 3));
  }
}

}  // namespace
}  // namespace kinora::test
