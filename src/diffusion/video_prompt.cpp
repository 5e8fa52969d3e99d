#include "diffusion/video_prompt.h"

#include "core/error.h"
#include "text/unicode.h"

namespace kinora {
namespace {

bool ends_with_fps(const std::string& text) {
  const std::string ending = " FPS.";
  if (!text.ends_with(ending) || text.size() == ending.size()) return false;
  char before = text[text.size() - ending.size() - 1];
  return before >= '0' && before <= '9';
}

}  // namespace

std::string video_prompt(const std::string& text, int64_t fps, std::optional<int64_t> motion_score) {
  if (fps < 1 || fps > 240)
    fail(ErrorKind::usage, "frames per second must be from 1 to 240, not " + std::to_string(fps));
  if (motion_score && (*motion_score < 1 || *motion_score > 15)) {
    fail(ErrorKind::usage, "the motion score must be from 1 to 15, not " + std::to_string(*motion_score));
  }
  check_utf8(text);
  std::string prompt = strip(text);
  if (!prompt.ends_with('.')) prompt += '.';
  if (!ends_with_fps(prompt)) prompt += " " + std::to_string(fps) + " FPS.";
  if (motion_score) prompt += " " + std::to_string(*motion_score) + " motion score.";
  return prompt;
}

}  // namespace kinora
