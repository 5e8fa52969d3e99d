// Any text as a list of times, a prompt for films, and the name of a size; and as the config of a video transformer.
#include <cmath>

#include "core/error.h"
#include "diffusion/video_prompt.h"
#include "diffusion/video_times.h"
#include "models/mmdit.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace kinora;
  std::string text(reinterpret_cast<const char*>(data), size);
  auto guarded = [](const auto& body) {
    try {
      body();
    } catch (const Error& error) {
      if (error.kind() == ErrorKind::internal) throw;
    }
  };
  guarded([&] {
    VideoShape shape = video_shape({}, 16, 16, 9);
    for (double p : parse_positions(shape, text, "fuzz")) {
      if (!std::isfinite(p)) fail(ErrorKind::internal, "a position is not finite");
    }
  });
  guarded([&] { video_prompt(text); });
  guarded([&] { named_size(text, "16:9"); });
  guarded([&] {
    static const Weights weights = [] {
      Weights w;
      w.add("img_in.weight", Tensor::zeros({32, 16}));
      w.add("txt_in.weight", Tensor::zeros({32, 4}));
      w.add("vector_in.in_layer.weight", Tensor::zeros({32, 3}));
      w.add("single_blocks.0.modulation.lin.weight", Tensor::zeros({96, 32}));
      w.add("single_blocks.0.norm.query_norm.scale", Tensor::zeros({16}));
      w.add("single_blocks.0.linear2.weight", Tensor::zeros({32, 64}));
      return w;
    }();
    MmditConfig c = read_mmdit_config(Config::parse(text, "fuzz"), weights);
    for (int axis = 0; axis < 3; ++axis) rope_axis(c, axis, {0, 0.5});
  });
  return 0;
}
