#include "io/video.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>

#include "golden.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

// A bright disc that moves to the right over a slow gradient.
Image scene(int width, int height, int frame) {
  Image image{width, height, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      double dx = x - width / 4.0 - 2.0 * frame, dy = y - height / 2.0;
      double in = std::clamp(height / 4.0 - std::sqrt(dx * dx + dy * dy), 0.0, 4.0) / 4;
      double background[] = {60.0 + 100.0 * x / width, 90.0, 40.0 + 120.0 * y / height}, disc[] = {250.0, 200.0, 20.0};
      for (int c = 0; c < 3; ++c) image.rgb.push_back(static_cast<uint8_t>(disc[c] * in + background[c] * (1 - in)));
    }
  }
  return image;
}

const ImageRecord kRecord{"", R"({"prompt":"a \"yellow\" star; moves=right \\ naïve","seed":0})"};

std::string write_film(const std::string& path, VideoOptions options, int frames = 9) {
  options.record = kRecord;
  auto writer = open_video(path, options);
  for (int i = 0; i < frames; ++i) writer->add(scene(options.width, options.height, i));
  writer->finish();
  return path;
}

double psnr(const Image& a, const Image& b) {
  double sum = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i) sum += std::pow(a.rgb[i] - b.rgb[i], 2);
  return 10 * std::log10(255.0 * 255.0 * static_cast<double>(a.rgb.size()) / std::max(sum, 1e-9));
}

bool can_write(const std::string& path, const std::string& codec) {
  try {
    check_video_path(path, codec);
    return true;
  } catch (const Error&) {
    return false;
  }
}

struct Film {
  const char *ending, *codec, *decoded;  // codec as asked for, and as read
  double psnr;
};

class VideoFormat : public testing::TestWithParam<Film> {};

TEST_P(VideoFormat, KeepsFramesRateAndRecord) {
  const Film& film = GetParam();
  TempFolder temp;
  std::string path = temp.path(std::string("a:film.") + film.ending);
  if (!can_write(path, film.codec)) GTEST_SKIP() << "no encoder for " << film.codec << " on this machine";
  write_film(path, {.width = 96, .height = 64, .fps = 25, .codec = film.codec});
  VideoReader reader = VideoReader::open(path);
  bool gif = std::string(film.ending) == "gif";
  EXPECT_EQ(reader.info().codec, film.decoded);
  EXPECT_NEAR(reader.info().fps, 25, 0.01);
  EXPECT_NEAR(reader.info().seconds, 9 / 25.0, 0.05);
  EXPECT_EQ(reader.info().record, gif ? "" : kRecord.json);
  Image frame;
  int frames = 0;
  for (; reader.next(frame); ++frames) {
    ASSERT_EQ(frame.width, 96);
    ASSERT_EQ(frame.height, 64);
    EXPECT_GT(psnr(frame, scene(96, 64, frames)), film.psnr) << "frame " << frames;
  }
  EXPECT_EQ(frames, 9);
  EXPECT_FALSE(reader.next(frame));
  std::string again = write_film(temp.path(std::string("again.") + film.ending),
                                 {.width = 96, .height = 64, .fps = 25, .codec = film.codec});
  EXPECT_EQ(read_file(path, 1 << 24), read_file(again, 1 << 24)) << "the same film, other bytes";
}

INSTANTIATE_TEST_SUITE_P(All, VideoFormat,
                         testing::Values(Film{"mp4", "", "h264", 34}, Film{"mkv", "h264", "h264", 34},
                                         Film{"mp4", "h265", "hevc", 34}, Film{"mp4", "av1", "av1", 30},
                                         Film{"webm", "", "vp9", 34}, Film{"webm", "av1", "av1", 30},
                                         Film{"gif", "", "gif", 26}),
                         [](const auto& param) { return std::string(param.param.ending) + "_" + param.param.decoded; });

TEST(Video, WebpAnimationKeepsItsRecord) {
  TempFolder temp;
  VideoOptions options{.width = 40, .height = 30};
  std::string path = write_film(temp.path("film.webp"), options), again = write_film(temp.path("again.webp"), options);
  EXPECT_EQ(read_record(path).json, kRecord.json);
  std::string bytes = read_file(path, 1 << 20);
  EXPECT_EQ(bytes, read_file(again, 1 << 20));
  size_t frames = 0;
  for (size_t at = 0; (at = bytes.find("ANMF", at)) != std::string::npos; ++at) ++frames;
  EXPECT_EQ(frames, 9u);
}

TEST(Video, FramesAsPictures) {
  TempFolder temp;
  EXPECT_TRUE(is_video_path("x/frames-{index}.png") && is_video_path("a.MP4") && !is_video_path("a.png"));
  write_film(temp.path("f-{index}.png"), {.width = 17, .height = 9}, 3);
  EXPECT_EQ(load_image(temp.path("f-0002.png")).rgb, scene(17, 9, 2).rgb);
  EXPECT_EQ(read_record(temp.path("f-0000.png")).json, kRecord.json);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(temp.path()), {}), 3);
}

// H.264 holds even sizes only: the last column and row are there twice.
TEST(Video, OddSizesAreMadeEvenByRepeatingTheEdge) {
  TempFolder temp;
  for (const char* name : {"odd.mp4", "odd.webm"}) {
    VideoReader reader = VideoReader::open(write_film(temp.path(name), {.width = 61, .height = 37}, 2));
    Image frame;
    ASSERT_TRUE(reader.next(frame));
    ASSERT_EQ(frame.width, 62);
    ASSERT_EQ(frame.height, 38);
    Image expected = scene(61, 37, 0);
    for (size_t c = 0; c < 3; ++c)
      EXPECT_NEAR(frame.rgb[(37 * 62 + 61) * 3 + c], expected.rgb[(36 * 61 + 60) * 3 + c], 10) << name;
  }
  VideoReader gif = VideoReader::open(write_film(temp.path("odd.gif"), {.width = 61, .height = 37}, 2));
  EXPECT_EQ(gif.info().width, 61);
}

// Small films without tags would be read with BT.601's matrix, and saturated colours would move by up to 30.
TEST(Video, ColoursStayWhatTheyWere) {
  TempFolder temp;
  const uint8_t colours[][3] = {{255, 0, 0},     {0, 255, 0},    {0, 0, 255},  {255, 255, 0},
                                {0, 255, 255},   {255, 0, 255},  {0, 0, 0},    {255, 255, 255},
                                {128, 128, 128}, {200, 120, 80}, {30, 60, 90}, {16, 235, 128}};
  for (const char* name : {"c.mp4", "c.webm"}) {
    auto writer = open_video(temp.path(name), {.width = 64, .height = 64, .quality = 6});
    for (const auto& colour : colours) {
      Image image{64, 64, {}};
      for (int i = 0; i < 64 * 64; ++i) image.rgb.insert(image.rgb.end(), colour, colour + 3);
      writer->add(image);
    }
    writer->finish();
    VideoReader reader = VideoReader::open(temp.path(name));
    Image frame;
    for (const auto& colour : colours) {
      ASSERT_TRUE(reader.next(frame));
      for (size_t c = 0; c < 3; ++c)
        EXPECT_NEAR(frame.rgb[(32 * 64 + 32) * 3 + c], colour[c], 3)
            << name << ": " << int{colour[0]} << " " << int{colour[1]} << " " << int{colour[2]};
    }
  }
}

TEST(Video, AnUnfinishedFilmLeavesNothing) {
  TempFolder temp;
  for (const char* name : {"a.mp4", "a.webm", "a.gif", "a.webp", "a-{index}.png"}) {
    {
      auto writer = open_video(temp.path(name), {.width = 32, .height = 32});
      writer->add(scene(32, 32, 0));
      EXPECT_NE(message_of([&] { writer->add(scene(16, 32, 0)); }, ErrorKind::usage).find("16x32"), std::string::npos);
      // A film so far has no name, so that nothing is left of it even when the program is killed.
      EXPECT_EQ(std::filesystem::is_empty(temp.path()), !std::string(name).ends_with(".png")) << name;
    }
    EXPECT_TRUE(std::filesystem::is_empty(temp.path())) << name;
    auto writer = open_video(temp.path(name), {.width = 32, .height = 32});
    EXPECT_NE(message_of([&] { writer->finish(); }, ErrorKind::usage).find("at least one frame"), std::string::npos);
    writer.reset();
    EXPECT_TRUE(std::filesystem::is_empty(temp.path())) << name;
    auto nowhere = [&] {
      open_video(temp.path(std::string("no/such/") + name), {.width = 32, .height = 32})->add(scene(32, 32, 0));
    };
    EXPECT_NE(message_of(nowhere, ErrorKind::io).find("No such file"), std::string::npos) << name;
  }
}

TEST(Video, AFullDiskIsAnErrorAndLeavesNothing) {
  TempFolder temp;
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  for (const char* name : {"a.mp4", "a.webm", "a.gif", "a.webp"}) {
    rlimit small = before;
    small.rlim_cur = 1500;
    auto write = [&] {
      setrlimit(RLIMIT_FSIZE, &small);
      write_film(temp.path(name), {.width = 320, .height = 200}, 12);
    };
    std::string text = message_of(write, ErrorKind::io);
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT_NE(text.find(name), std::string::npos) << text;
    EXPECT_TRUE(std::filesystem::is_empty(temp.path())) << name;
  }
}

TEST(Video, SaysWhatCanBeWritten) {
  auto refusal = [](const std::string& path, const std::string& codec) {
    return message_of([&] { check_video_path(path, codec); }, ErrorKind::usage);
  };
  EXPECT_NE(refusal("a.avi", "").find("frames-{index}.png"), std::string::npos);
  EXPECT_NE(refusal("a.png", "").find("{index}"), std::string::npos);
  EXPECT_NE(refusal("a.webm", "h264").find("cannot hold 'h264'; available for .webm: "), std::string::npos);
  EXPECT_NE(refusal("a.mp4", "theora").find("available for .mp4: h264"), std::string::npos);
  EXPECT_NE(refusal("a.webp", "av1").find("no codec to choose"), std::string::npos);
  auto open = [](const VideoOptions& options) { return [options] { open_video("/tmp/never.mp4", options); }; };
  EXPECT_NE(message_of(open({.width = 0, .height = 5}), ErrorKind::usage).find("0x5"), std::string::npos);
  EXPECT_NE(message_of(open({.width = 8, .height = 8, .fps = 0}), ErrorKind::usage).find("frames a second"),
            std::string::npos);
  EXPECT_NE(message_of(open({.width = 8, .height = 8, .quality = 60}), ErrorKind::usage).find("0 (best) to 51"),
            std::string::npos);
}

TEST(Video, DamagedFilmsGiveFramesOrAnError) {
  TempFolder temp;
  for (const char* name : {"d.mp4", "d.webm", "d.gif"}) {
    std::string whole = read_file(write_film(temp.path(name), {.width = 64, .height = 48}), 1 << 20);
    int refused = 0;
    auto read = [&](const std::string& bytes) {
      try {
        VideoReader reader = VideoReader::from_bytes(std::as_bytes(std::span(bytes)), name);
        Image frame;
        for (int i = 0; i < 100 && reader.next(frame); ++i) EXPECT_EQ(frame.rgb.size(), size_t{64} * 48 * 3);
      } catch (const Error& error) {
        ++refused;
        EXPECT_EQ(error.kind(), ErrorKind::input) << error.what();
      }
    };
    for (size_t size = 0; size < whole.size(); size += std::max<size_t>(1, whole.size() / 40))
      read(whole.substr(0, size));
    EXPECT_GT(refused, 0) << name;
    for (size_t i = 0; i < whole.size(); i += std::max<size_t>(1, whole.size() / 60)) {
      std::string bytes = whole;
      bytes[i] = static_cast<char>(bytes[i] ^ 0x5a);
      try {
        read(bytes);
      } catch (...) {
        ADD_FAILURE() << name << " with byte " << i << " changed";
      }
    }
  }
  EXPECT_NE(message_of([] { VideoReader::from_bytes({}, "empty.mp4"); }, ErrorKind::input).find("empty.mp4"),
            std::string::npos);
  EXPECT_NE(message_of([] { VideoReader::open("/no/such.mp4"); }, ErrorKind::io).find("/no/such.mp4"),
            std::string::npos);
}

// Phones store their pictures lying and say in the track's matrix how they were held.
TEST(Video, FilmsThatWereTurnedAreReadUpright) {
  TempFolder temp;
  std::string bytes = read_file(source_folder() + "/tests/golden/tiny.mp4", 1 << 20);
  size_t matrix = bytes.find("tkhd") + 4 + 40;  // a a b; c d d; of 16.16 numbers, the last column of 2.30
  ASSERT_EQ(bytes.substr(matrix, 4), std::string("\0\1\0\0", 4));
  auto set = [&](size_t i, int32_t value) {
    for (size_t k = 0; k < 4; ++k) bytes[matrix + 4 * i + k] = static_cast<char>(value >> (24 - 8 * k));
  };
  VideoReader plain = VideoReader::open(source_folder() + "/tests/golden/tiny.mp4");
  Image lying, upright;
  ASSERT_TRUE(plain.next(lying));
  set(0, 0);
  set(1, 65536);
  set(3, -65536);
  set(4, 0);
  VideoReader turned = VideoReader::open(temp.write("turned.mp4", bytes));  // a quarter to the right
  EXPECT_EQ(turned.info().width, 16);
  ASSERT_TRUE(turned.next(upright));
  ASSERT_EQ(upright.width, 16);
  ASSERT_EQ(upright.height, 32);
  for (int y = 0; y < 32; ++y) {
    for (int x = 0; x < 16; ++x) {
      for (size_t c = 0; c < 3; ++c)
        ASSERT_EQ(upright.rgb[static_cast<size_t>(y * 16 + x) * 3 + c],
                  lying.rgb[static_cast<size_t>((15 - x) * 32 + y) * 3 + c]);
    }
  }
}

// tiny.mp4 with an AAC track before the pictures.
TEST(Video, SoundIsLeftAside) {
  VideoReader plain = VideoReader::open(source_folder() + "/tests/golden/tiny.mp4");
  VideoReader sound = VideoReader::open(source_folder() + "/tests/golden/tiny_sound.mp4");
  std::vector<Image> expected = first_frames(plain, 4), got = first_frames(sound, 4);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(got[i].rgb, expected[i].rgb);
  Image frame;
  EXPECT_FALSE(sound.next(frame));
}

TEST(Video, LongRecordsAreKept) {
  TempFolder temp;
  std::string json = "{\"prompt\":\"" + std::string(100000, 'x') + "é\"}";
  for (const char* name : {"r.mp4", "r.webm", "r.mkv"}) {
    auto writer = open_video(temp.path(name), {.width = 16, .height = 16, .record = {"", json}});
    writer->add(scene(16, 16, 0));
    writer->finish();
    EXPECT_EQ(read_video_record(temp.path(name)), json) << name;
  }
}

// Written once by open_video and kept, so that films of before stay readable: a red square that moves to the right by
// four pixels a frame.
TEST(Video, ReadsFilmsOfBefore) {
  for (std::string ending : {"mp4", "webm", "gif"}) {
    VideoReader reader = VideoReader::open(source_folder() + "/tests/golden/tiny." + ending);
    EXPECT_EQ(reader.info().record, ending == "gif" ? "" : R"({"prompt":"a square moves"})");
    EXPECT_NEAR(reader.info().fps, 8, 0.4) << ending;  // GIF counts in hundredths of a second
    Image frame;
    int frames = 0;
    for (; reader.next(frame); ++frames) {
      ASSERT_EQ(frame.width, 32);
      for (int x : {4 * frames + 5, 4 * frames + 14}) {
        const uint8_t* pixel = frame.rgb.data() + (8 * 32 + x % 32) * 3;
        const int expected[] = {x == 4 * frames + 5 ? 230 : 20, x == 4 * frames + 5 ? 40 : 60,
                                x == 4 * frames + 5 ? 30 : 160};
        for (int c = 0; c < 3; ++c)
          EXPECT_NEAR(pixel[c], expected[c], ending == "gif" ? 0 : 20) << ending << " " << frames << " " << x;
      }
    }
    EXPECT_EQ(frames, 4) << ending;
  }
}

// Formats that name other files would let a film read what it should not.
TEST(Video, NoFormatThatNamesOtherFilesIsOpened) {
  TempFolder temp;
  std::string secret = write_film(temp.path("secret.mp4"), {.width = 16, .height = 16}, 1);
  for (std::string text : {"ffconcat version 1.0\nfile " + secret + "\n",
                           "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n" + secret + "\n#EXT-X-ENDLIST\n"}) {
    EXPECT_NE(message_of([&] { VideoReader::open(temp.write("list.mp4", text)); }, ErrorKind::input).find("no film"),
              std::string::npos);
  }
}

TEST(Video, FirstAndLastFrames) {
  TempFolder temp;
  std::string path = write_film(temp.path("f.mp4"), {.width = 64, .height = 48}, 9);
  VideoReader a = VideoReader::open(path), b = VideoReader::open(path), c = VideoReader::open(path);
  std::vector<Image> first = first_frames(a, 3), last = last_frames(b, 3);
  ASSERT_EQ(first.size(), 3u);
  ASSERT_EQ(last.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_GT(psnr(first[static_cast<size_t>(i)], scene(64, 48, i)), 30);
    EXPECT_GT(psnr(last[static_cast<size_t>(i)], scene(64, 48, 6 + i)), 30);
  }
  EXPECT_NE(message_of([&] { first_frames(c, 33); }, ErrorKind::input).find("has 9 frames; 33 are needed"),
            std::string::npos);
  EXPECT_EQ(read_video_record(path), kRecord.json);
}

TEST(Video, FitsPicturesAndFilmsAsOpenSora) {
  auto golden = SafetensorsFile::open(source_folder() + "/tests/golden/fit.safetensors");
  Tensor in = golden.tensor("in");
  std::vector<Image> frames;
  for (int64_t i = 0; i < 2; ++i) {
    Tensor frame = in.rows(i, i + 1);
    frames.push_back({33, 19, {frame.data<uint8_t>(), frame.data<uint8_t>() + frame.numel()}});
  }
  for (auto [width, height] : {std::pair{16, 16}, {48, 20}, {24, 40}, {33, 19}, {17, 11}}) {
    std::string size = std::to_string(width) + "x" + std::to_string(height);
    Tensor film = fill_crop_frames(frames, width, height);
    expect_close(film, golden.tensor("film." + size), DType::f32, 4, size);
    Image picture = fill_crop(frames[0], width, height);
    Tensor expected = golden.tensor("picture." + size);
    ASSERT_EQ(static_cast<int64_t>(picture.rgb.size()), expected.numel());
    int worst = 0;
    for (size_t i = 0; i < picture.rgb.size(); ++i)
      worst = std::max(worst, std::abs(picture.rgb[i] - expected.data<uint8_t>()[i]));
    EXPECT_LE(worst, 1) << size;  // Pillow rounds its coefficients to 22 bits
  }
}

TEST(Video, ContactSheetTakesFirstAndLastFrame) {
  ContactSheet sheet(33, 5, 32);
  for (int i = 0; i < 33; ++i) {
    Image frame{64, 32, std::vector<uint8_t>(size_t{64} * 32 * 3, static_cast<uint8_t>(i * 7))};
    sheet.add(frame);
  }
  Image picture = sheet.picture(3);
  EXPECT_EQ(picture.width, 3 * 36 + 4);
  EXPECT_EQ(picture.height, 2 * 20 + 4);
  auto at = [&](int x, int y) { return int{picture.rgb[static_cast<size_t>((y * picture.width + x) * 3)]}; };
  EXPECT_EQ(at(0, 0), 255);
  EXPECT_EQ(at(10, 10), 0);
  EXPECT_EQ(at(46, 10), 8 * 7);
  EXPECT_EQ(at(82, 10), 16 * 7);
  EXPECT_EQ(at(10, 30), 24 * 7);
  EXPECT_EQ(at(46, 30), 32 * 7);
  EXPECT_EQ(at(82, 30), 255);
}

}  // namespace
}  // namespace kinora::test
