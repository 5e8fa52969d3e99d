// What Open-Sora 2.0 appends to a prompt for films.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace kinora {

// "raining, sea" -> "raining, sea. 24 FPS. 4 motion score.": stripped, ended with a period, the frame rate unless the
// text ends with one ("12 FPS."), the motion score. Negative prompts are used as they are.
// Throws Error(usage) unless fps is 1 to 240 and the score 1 to 15; Error(input) on invalid UTF-8.
std::string video_prompt(const std::string& text, int64_t fps = 24, std::optional<int64_t> motion_score = 4);

}  // namespace kinora
