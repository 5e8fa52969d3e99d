// Sizes of films: what a model can make, the named sizes of Open-Sora 2.0, and how pixels become tokens.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kinora {

// How an autoencoder and a transformer divide a film.
struct VideoLayout {
  int64_t channels = 16;                            // of a latent
  int64_t temporal = 4, spatial = 8;                // frames and pixels a latent stands for
  int64_t patch = 2;                                // latents a token is wide and high
  bool causal = true;                               // the first frame has a latent of its own
  int64_t cell() const { return spatial * patch; }  // pixels a token is wide and high
};

struct VideoShape {
  VideoLayout layout;
  int64_t width = 0, height = 0, frames = 0;  // pixels
  int64_t latent_width = 0, latent_height = 0, latent_frames = 0;

  int64_t columns() const { return latent_width / layout.patch; }  // tokens
  int64_t rows() const { return latent_height / layout.patch; }
  int64_t tokens_per_frame() const { return rows() * columns(); }
  int64_t tokens() const { return latent_frames * tokens_per_frame(); }
};

// Latents in time of so many frames: 1 + (frames - 1)/temporal when causal, frames/temporal when not; 1 for one frame.
// Throws Error(usage), naming the counts nearest, when frames is not 1 + a multiple of temporal (not causal: a
// multiple).
int64_t latent_frames_of(const VideoLayout& layout, int64_t frames);

// Throws Error(usage), naming the sizes nearest, for one that is no multiple of the layout's cell or out of range.
VideoShape video_shape(const VideoLayout& layout, int64_t width, int64_t height, int64_t frames);

// {width, height} of Open-Sora's table: `resolution` is "256px", "768px" or any Npx (N² pixels) or Np (N²·16/9);
// `aspect` is one of aspect_names(), width:height; sides are multiples of `cell`. The reference's training tables,
// which it also uses for the first picture of text → picture → film, come nearer to the number of pixels: `nearest`.
// Throws Error(usage).
std::pair<int64_t, int64_t> named_size(const std::string& resolution, const std::string& aspect, int64_t cell = 16,
                                       bool nearest = false);
std::vector<std::string> aspect_names();

// {width, height}, multiples of `cell`: `resolution` is "WxH", or Npx or Np as above, which takes the ratio of the
// sides given. Throws Error(usage) for another text.
std::pair<int64_t, int64_t> size_like(const std::string& resolution, int64_t width, int64_t height, int64_t cell);
// The same for a first draft of something of width x height; throws Error(usage) unless it is smaller than that.
std::pair<int64_t, int64_t> draft_size(const std::string& resolution, int64_t width, int64_t height, int64_t cell);

}  // namespace kinora
