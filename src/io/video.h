// Films: written and read frame by frame, through FFmpeg's libraries or libwebp, with the record of how they were made.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "io/image.h"

namespace kinora {

struct VideoOptions {
  int width = 0, height = 0;  // pixels of every frame; 1 to 16,384
  double fps = 24;            // frames a second, 0.1 to 1,000
  std::string codec;          // "h264", "h265", "av1", "vp9"; empty: h264 in .mp4 and .mkv, vp9 in .webm
  int quality = -1;           // the codec's constant rate factor, 0 (best) to 63 (51 for h264 and h265); WebP: 0 to 100
                              // (best); -1: a good one
  ImageRecord record;         // its JSON goes into the film (as the comment, XMP in WebP, each of the PNG frames; none
                              // in GIF)
};

// Writes a film; the same frames and options give the same bytes, on any machine with the same libraries.
// Until finish() the film has no name (rows of pictures: temporary ones); a writer that goes away before leaves
// nothing.
class VideoWriter {
 public:
  virtual ~VideoWriter() = default;
  // Throws Error(usage) for another size, Error(io) when the disk is full or the codec fails.
  virtual void add(const Image& frame) = 0;
  // No frame at all is an Error(usage).
  virtual void finish() = 0;
};

// By the ending of `path`: .mp4, .mkv, .webm, .webp and .gif (animations), or a .png path with "{index}" in its last
// part, which becomes 0000, 0001 and so on. H.264, H.265 and AV1 hold even sizes only: an odd side is made one pixel
// longer by repeating the edge. Throws Error(usage) for an ending or a codec that cannot be written here.
std::unique_ptr<VideoWriter> open_video(const std::string& path, const VideoOptions& options);
// What open_video would refuse, without writing: to be asked before a film is made.
void check_video_path(const std::string& path, const std::string& codec = "");
// True when `path` ends like a film or a row of frames, not like a picture; .webp counts as a picture.
bool is_video_path(const std::string& path);

struct VideoInfo {
  int width = 0, height = 0;
  double fps = 0;      // 0 when the file does not say
  double seconds = 0;  // likewise
  std::string codec, record;
};

// Reads the pictures of a film of any common format, upright where the file says how it was held. Files are hostile:
// only a known list of formats and codecs is opened, nothing outside the file is read, frames have at most 36 million
// pixels.
class VideoReader {
 public:
  // Throws Error(io), or Error(input) when it is no film that can be read.
  static VideoReader open(const std::string& path);
  // `bytes` must outlive the reader.
  static VideoReader from_bytes(std::span<const std::byte> bytes, const std::string& name);
  VideoReader(VideoReader&&) noexcept;
  VideoReader& operator=(VideoReader&&) noexcept;
  ~VideoReader();

  const VideoInfo& info() const;
  // The next frame; false at the end. Throws Error(input) for a damaged film.
  bool next(Image& frame);

 private:
  struct State;
  explicit VideoReader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The JSON record inside a film; empty when there is none. Throws as VideoReader.
std::string read_video_record(const std::string& path);

// The first `count` frames, or the last. Throws Error(input) when there are fewer, or more than 100,000 to go through.
std::vector<Image> first_frames(VideoReader& reader, int64_t count);
std::vector<Image> last_frames(VideoReader& reader, int64_t count);

// Bilinear resize (align_corners false, no antialiasing) to cover width x height, then the centre, as Open-Sora does it
// to a film that is extended. -> [frames, height, width, 3] f32, value/127.5 - 1.
Tensor fill_crop_frames(const std::vector<Image>& frames, int width, int height);

// Some frames of a film side by side: give it every frame, it keeps small copies of `count` evenly chosen ones.
class ContactSheet {
 public:
  ContactSheet(int64_t frames, int64_t count = 12, int width = 256);  // pixels of one small copy
  void add(const Image& frame);
  Image picture(int columns = 4) const;  // on white, four pixels apart
 private:
  int64_t frames_, count_, seen_ = 0;
  int width_;
  std::vector<Image> kept_;
};

}  // namespace kinora
