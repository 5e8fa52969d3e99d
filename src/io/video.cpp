#include "io/video.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <filesystem>

#include "io/file.h"
#include "io/image_codecs.h"
#include "io/video_writers.h"

namespace kinora {
namespace {

constexpr int64_t kMostFrames = 100000;
constexpr const char* kIndex = "{index}";

std::string ending_of(const std::string& path) {
  std::string ending = std::filesystem::path(path).extension().string();
  for (char& c : ending) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return ending.empty() ? "" : ending.substr(1);
}

bool is_ffmpeg(const std::string& ending) {
  return ending == "mp4" || ending == "mkv" || ending == "webm" || ending == "gif";
}
bool is_frames(const std::string& path) {
  return ending_of(path) == "png" && std::filesystem::path(path).filename().string().find(kIndex) != std::string::npos;
}

class PngFrames : public VideoWriter {
 public:
  PngFrames(std::string path, VideoOptions options) : path_(std::move(path)), options_(std::move(options)) {}

  void add(const Image& frame) override {
    expect_frame_size(frame, options_);
    std::string digits = std::to_string(files_.size());
    if (digits.size() < 4) digits.insert(0, 4 - digits.size(), '0');
    std::filesystem::path pattern(path_);
    std::string name = pattern.filename().string();
    name.replace(name.find(kIndex), std::string(kIndex).size(), digits);
    files_.push_back(std::make_unique<TemporaryFile>((pattern.parent_path() / name).string(), true));
    files_.back()->write(encode_image("png", frame, options_.record));
  }
  void finish() override {
    if (files_.empty()) fail_without_frames(path_);
    for (auto& file : files_) file->commit();
  }

 private:
  std::string path_;
  VideoOptions options_;
  std::vector<std::unique_ptr<TemporaryFile>> files_;
};

struct Sample {
  int64_t low, high;
  float weight;  // of high
};

// torch's bilinear sampling with align_corners false.
Sample sample_at(int64_t i, int64_t from, int64_t to) {
  float ratio = static_cast<float>(from) / static_cast<float>(to);
  float at = std::max(0.0f, std::fma(ratio, static_cast<float>(i) + 0.5f, -0.5f));  // rounded once, as torch's
  auto low = std::min(static_cast<int64_t>(at), from - 1);
  return {low, std::min(low + 1, from - 1), at - static_cast<float>(low)};
}

}  // namespace

void expect_frame_size(const Image& frame, const VideoOptions& o) {
  check(frame.rgb.size() == static_cast<size_t>(frame.width) * static_cast<size_t>(frame.height) * 3,
        "a frame must hold three bytes a pixel");
  if (frame.width == o.width && frame.height == o.height) return;
  fail(ErrorKind::usage, "a frame of " + std::to_string(frame.width) + "x" + std::to_string(frame.height) +
                             " pixels does not fit a film of " + std::to_string(o.width) + "x" +
                             std::to_string(o.height));
}

void fail_without_frames(const std::string& path) {
  fail(ErrorKind::usage, "a film needs at least one frame; " + path + " was not written");
}

bool is_video_path(const std::string& path) { return is_ffmpeg(ending_of(path)) || is_frames(path); }

void check_video_path(const std::string& path, const std::string& codec) {
  std::string ending = ending_of(path);
  if (is_ffmpeg(ending)) return check_ffmpeg_codec(ending, codec);
  if (!codec.empty() && (ending == "webp" || ending == "png"))
    fail(ErrorKind::usage,
         "a ." + ending + " animation has no codec to choose; '" + codec + "' goes with .mp4, .mkv or .webm");
  if (ending == "webp" || is_frames(path)) return;
  if (ending == "png") fail(ErrorKind::usage, "frames as .png need {index} in their name, as in frames-{index}.png");
  fail(ErrorKind::usage, "cannot write a film as '" + std::filesystem::path(path).filename().string() +
                             "' (use .mp4, .mkv, .webm, .webp, .gif or frames-{index}.png)");
}

std::unique_ptr<VideoWriter> open_video(const std::string& path, const VideoOptions& o) {
  check_video_path(path, o.codec);
  if (o.width < 1 || o.height < 1 || o.width > 16384 || o.height > 16384)
    fail(ErrorKind::usage, "a film of " + std::to_string(o.width) + "x" + std::to_string(o.height) +
                               " pixels cannot be written: 1 to 16384 a side");
  if (!(o.fps >= 0.1 && o.fps <= 1000))
    fail(ErrorKind::usage, "frames a second must be from 0.1 to 1000, not " + std::to_string(o.fps));
  if (o.quality < -1 || o.quality > 100) fail(ErrorKind::usage, "quality must be from 0 to 100");
  std::string ending = ending_of(path);
  if (ending == "png") return std::make_unique<PngFrames>(path, o);
  return ending == "webp" ? open_webp_animation(path, o) : open_ffmpeg_video(path, ending, o);
}

std::vector<Image> first_frames(VideoReader& reader, int64_t count) {
  std::vector<Image> frames;
  Image frame;
  while (static_cast<int64_t>(frames.size()) < count && reader.next(frame)) frames.push_back(frame);
  if (static_cast<int64_t>(frames.size()) < count)
    fail(ErrorKind::input,
         "the film has " + std::to_string(frames.size()) + " frames; " + std::to_string(count) + " are needed");
  return frames;
}

std::vector<Image> last_frames(VideoReader& reader, int64_t count) {
  std::deque<Image> frames;
  Image frame;
  for (int64_t seen = 0; reader.next(frame); ++seen) {
    if (seen == kMostFrames)
      fail(ErrorKind::input,
           "the film is longer than " + std::to_string(kMostFrames) + " frames; cut its end out first");
    frames.push_back(std::move(frame));
    if (static_cast<int64_t>(frames.size()) > count) frames.pop_front();
  }
  if (static_cast<int64_t>(frames.size()) < count)
    fail(ErrorKind::input,
         "the film has " + std::to_string(frames.size()) + " frames; " + std::to_string(count) + " are needed");
  return {std::make_move_iterator(frames.begin()), std::make_move_iterator(frames.end())};
}

std::string read_video_record(const std::string& path) { return VideoReader::open(path).info().record; }

Tensor fill_crop_frames(const std::vector<Image>& frames, int width, int height) {
  check(!frames.empty(), "fill_crop_frames: no frames");
  int64_t w = frames[0].width, h = frames[0].height, wide = width, high = height;
  double down = static_cast<double>(height) / static_cast<double>(h),
         across = static_cast<double>(width) / static_cast<double>(w);
  if (down > across) {
    wide = static_cast<int64_t>(std::nearbyint(static_cast<double>(w) * down));
  } else {
    high = static_cast<int64_t>(std::nearbyint(static_cast<double>(h) * across));
  }
  int64_t top = (high - height) / 2, left = (wide - width) / 2;
  Tensor out({static_cast<int64_t>(frames.size()), height, width, 3}, DType::f32);
  float* y = out.data<float>();
  for (const Image& frame : frames) {
    check(frame.width == w && frame.height == h, "fill_crop_frames: frames of different size");
    auto at = [&](int64_t row, int64_t column, int64_t c) {
      return static_cast<float>(frame.rgb[static_cast<size_t>((row * w + column) * 3 + c)]) / 255.0f;
    };
    for (int64_t i = 0; i < height; ++i) {
      Sample row = sample_at(i + top, h, high);
      for (int64_t j = 0; j < width; ++j) {
        Sample column = sample_at(j + left, w, wide);
        for (int64_t c = 0; c < 3; ++c) {
          float upper = at(row.low, column.low, c) * (1 - column.weight) + at(row.low, column.high, c) * column.weight;
          float lower =
              at(row.high, column.low, c) * (1 - column.weight) + at(row.high, column.high, c) * column.weight;
          *y++ = (upper * (1 - row.weight) + lower * row.weight - 0.5f) / 0.5f;
        }
      }
    }
  }
  return out;
}

ContactSheet::ContactSheet(int64_t frames, int64_t count, int width)
    : frames_(std::max<int64_t>(1, frames)), count_(std::clamp<int64_t>(count, 1, frames_)), width_(width) {}

// Frame i is kept when it is the first at or after the next of `count` even steps, the last frame being the last step.
void ContactSheet::add(const Image& frame) {
  auto kept = static_cast<int64_t>(kept_.size());
  int64_t next = count_ == 1 ? 0 : (kept * (frames_ - 1) + (count_ - 1) / 2) / (count_ - 1);
  if (kept < count_ && seen_ == next) {
    int height = std::max(1, static_cast<int>(std::lround(static_cast<double>(frame.height) * width_ / frame.width)));
    kept_.push_back(resize_lanczos(frame, width_, height));
  }
  ++seen_;
}

Image ContactSheet::picture(int columns) const {
  check(!kept_.empty() && columns > 0, "ContactSheet: no frames");
  constexpr int gap = 4;
  columns = std::min(columns, static_cast<int>(kept_.size()));
  int rows = (static_cast<int>(kept_.size()) + columns - 1) / columns, cell = kept_[0].height;
  Image sheet{columns * (width_ + gap) + gap, rows * (cell + gap) + gap, {}};
  sheet.rgb.assign(static_cast<size_t>(sheet.width) * static_cast<size_t>(sheet.height) * 3, 255);
  for (size_t i = 0; i < kept_.size(); ++i) {
    int row = static_cast<int>(i) / columns, column = static_cast<int>(i) % columns;
    for (int y = 0; y < cell; ++y) {
      auto from = kept_[i].rgb.begin() + static_cast<std::ptrdiff_t>(y) * width_ * 3;
      int top = gap + row * (cell + gap) + y, left = gap + column * (width_ + gap);
      std::copy(from, from + width_ * 3,
                sheet.rgb.begin() + (static_cast<std::ptrdiff_t>(top) * sheet.width + left) * 3);
    }
  }
  return sheet;
}

}  // namespace kinora
