// When the frames of a film are: times spread evenly, densely around key frames, or as a list says. The transformer
// sees them as fractional positions of its latent frames. Times count frames of an even film: 0, 1, 2 …
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "diffusion/video_size.h"

namespace kinora {

// Positions of the latent frames, 0, 1 … latent_frames - 1.
std::vector<double> uniform_positions(const VideoShape& shape);

// The same span, but up to four times as dense around `keys`, which are frames in [0, frames - 1]: the density over the
// film is 1 + 3·Σ exp(-((t - key)/w)²/2) with w a twelfth of its length. Throws Error(usage) without keys, or for one
// outside.
std::vector<double> adaptive_positions(const VideoShape& shape, const std::vector<double>& keys);

// From a text with one time a line ('#' begins a comment): the time of each latent frame, or of each frame. Throws
// Error(input), naming `name` and the line, unless they are rising numbers from 0 to 10000 in either number.
std::vector<double> parse_positions(const VideoShape& shape, std::string_view text, const std::string& name);

// The time of each of the film's frames, for showing them: interpolated between those of the latent frames.
std::vector<double> frame_times(const VideoShape& shape, const std::vector<double>& positions);

}  // namespace kinora
