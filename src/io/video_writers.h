// The parts that open_video chooses from.
#pragma once

#include "io/video.h"

namespace kinora {

// Films that FFmpeg's libraries write: .mp4, .mkv, .webm, .gif. `ending` without its dot.
std::unique_ptr<VideoWriter> open_ffmpeg_video(const std::string& path, const std::string& ending,
                                               const VideoOptions& options);
void check_ffmpeg_codec(const std::string& ending, const std::string& codec);

std::unique_ptr<VideoWriter> open_webp_animation(const std::string& path, const VideoOptions& options);
std::unique_ptr<VideoWriter> open_png_frames(const std::string& path, const VideoOptions& options);

// Throws Error(usage) unless the frame has the size that was announced.
void expect_frame_size(const Image& frame, const VideoOptions& options);
[[noreturn]] void fail_without_frames(const std::string& path);

// A picture in at most 256 colours: median cut over its colours, ordered dithering.
struct IndexedImage {
  std::vector<uint32_t> palette;  // 0xffRRGGBB
  std::vector<uint8_t> pixels;
};
IndexedImage reduce_colours(const Image& image);

}  // namespace kinora
