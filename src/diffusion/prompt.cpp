#include "diffusion/prompt.h"

#include "diffusion/pipeline.h"
#include "text/unicode.h"

namespace kinora {

const char kComplexHumanInstruction[] =
    "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual descriptions suitable for image "
    "generation. Evaluate the level of detail in the user prompt:\n"
    "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, textures, and spatial "
    "relationships to "
    "create vivid and concrete scenes.\n"
    "- If the prompt is already detailed, refine and enhance the existing details slightly without overcomplicating.\n"
    "Here are examples of how to transform or refine prompts:\n"
    "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round shape, sleeping "
    "peacefully on a "
    "warm sunny windowsill, surrounded by pots of blooming red flowers.\n"
    "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, featuring glowing street "
    "lamps, a "
    "diverse crowd of people in colorful clothing, and a double-decker bus passing by towering glass skyscrapers.\n"
    "Please generate only the enhanced description for the prompt below and avoid including any additional commentary "
    "or "
    "evaluations:\n"
    "User Prompt: ";

std::string preprocess_prompt(const std::string& prompt) { return strip(to_lower(prompt)); }

void expect_shape_of(const Tensor& latents, const Shape& expected) {
  if (latents.shape() == expected) return;
  fail(ErrorKind::input,
       "the given noise has shape " + latents.shape().str() + ", but this picture needs " + expected.str());
}

}  // namespace kinora
