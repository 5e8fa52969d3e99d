#include "io/image.h"

#include <gtest/gtest.h>

#include "io/safetensors.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

Image gradient(int width, int height) {
  Image image{width, height, {}};
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c) image.rgb.push_back(static_cast<uint8_t>((x * 3 + y * (c + 1)) % 256));
  return image;
}

const ImageRecord kRecord{"a cat\nSteps: 4, Seed: 1 — naïve", "{\"prompt\":\"a \\u00e9 <&> ]]> 'cat'\"}"};

class ImageFormat : public testing::TestWithParam<const char*> {};

TEST_P(ImageFormat, KeepsPictureAndRecord) {
  Image image = gradient(61, 40);
  std::string bytes = encode_image(GetParam(), image, kRecord);
  Image back = decode_image(bytes, "x");
  ASSERT_EQ(back.width, 61);
  ASSERT_EQ(back.height, 40);
  double sum = 0;
  for (size_t i = 0; i < image.rgb.size(); ++i) sum += std::abs(image.rgb[i] - back.rgb[i]);
  EXPECT_LE(sum / static_cast<double>(image.rgb.size()), std::string(GetParam()) == "png" ? 0 : 8);
  ImageRecord record = decode_record(bytes, "x");
  EXPECT_EQ(record.json, kRecord.json);
  EXPECT_EQ(record.parameters, kRecord.parameters);
  EXPECT_EQ(decode_record(encode_image(GetParam(), image, {}), "x").json, "");
}

TEST_P(ImageFormat, CutFilesGiveAnErrorOrAPicture) {
  std::string bytes = encode_image(GetParam(), gradient(61, 40), kRecord);
  int refused = 0;
  for (size_t size = 0; size < bytes.size(); size += 37) {
    try {
      Image image = decode_image(bytes.substr(0, size), "cut");
      EXPECT_EQ(image.rgb.size(), size_t{61} * 40 * 3);
    } catch (const Error& error) {
      ++refused;
      EXPECT_EQ(error.kind(), ErrorKind::input) << error.what();
    }
  }
  EXPECT_GT(refused, 0);
}

INSTANTIATE_TEST_SUITE_P(All, ImageFormat, testing::Values("png", "jpg", "webp"));

TEST(Image, UnknownFilesAndEndingsAreRefused) {
  EXPECT_THROW(decode_image("hello", "x"), Error);
  EXPECT_THROW(decode_image("", "x"), Error);
  TempFolder temp;
  EXPECT_THROW(save_image(temp.path("x.bmp"), gradient(2, 2)), Error);
  EXPECT_THROW(save_image(temp.path("no/such/x.png"), gradient(2, 2)), Error);
  EXPECT_TRUE(std::filesystem::is_empty(temp.path()));
}

TEST(Image, LanczosEqualsPillow) {
  auto golden = SafetensorsFile::open(KINORA_SOURCE_DIR "/tests/golden/images.safetensors");
  Tensor in = golden.tensor("in");
  Image image{37, 23, {in.data<uint8_t>(), in.data<uint8_t>() + in.numel()}};
  for (auto [width, height] : {std::pair{16, 16}, {64, 50}, {37, 10}, {5, 23}}) {
    Tensor expected = golden.tensor(std::to_string(width) + "x" + std::to_string(height));
    Image got = resize_lanczos(image, width, height);
    int worst = 0;
    for (size_t i = 0; i < got.rgb.size(); ++i)
      worst = std::max(worst, std::abs(got.rgb[i] - expected.data<uint8_t>()[i]));
    EXPECT_LE(worst, 1) << width << "x" << height;  // Pillow rounds its coefficients to 22 bits
  }
}

TEST(Image, TensorsRoundHalfToEven) {
  Tensor t = Tensor::from({1, 1, 2, 3}, std::vector<float>{-2, -1, 0, 0.5f, 1, 7});
  EXPECT_EQ(to_image(t).rgb, (std::vector<uint8_t>{0, 0, 128, 191, 255, 255}));
  Image image = gradient(8, 8);
  EXPECT_EQ(to_image(to_tensor(image)).rgb, image.rgb);
}

}  // namespace
}  // namespace kinora::test
