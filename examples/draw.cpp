// Draws a prompt: draw MODEL_FOLDER PROMPT OUTPUT.png
#include <cstdio>

#include "diffusion/pipeline.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: draw MODEL_FOLDER PROMPT OUTPUT.png\n");
    return 2;
  }
  try {
    kinora::Pipeline pipeline = kinora::Pipeline::load(argv[1]);
    kinora::Request request;
    request.prompt = argv[2];
    request.seeds = {42};
    request.on_step = [](const kinora::StepReport& r) { std::printf("step %d of %d\n", int(r.step), int(r.steps)); };
    kinora::save_image(argv[3], pipeline.generate(request).images[0]);
  } catch (const kinora::Error& error) {
    std::fprintf(stderr, "draw: %s\n", error.what());
    return 1;
  }
}
