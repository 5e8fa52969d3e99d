// A golden of make_mmdit.py or make_video_sampling.py, and the model in it.
#pragma once

#include "diffusion/video_denoiser.h"
#include "golden.h"
#include "support.h"

namespace kinora::test {

struct MmditGolden : Golden {
  using Golden::Golden;
  VideoDenoiser model(int threads = 2, DType dtype = DType::f32) const {
    return VideoDenoiser(read_mmdit_config(config, weights), weights, {&cpu::backend(), context(threads), dtype});
  }
};

// The axes of a grid, given the position [batch, tokens, 3] of each of its tokens.
inline MmditPositions positions_of(const Tensor& ids) {
  int64_t tokens = ids.shape()[1];
  MmditPositions p;
  std::vector<double>* axes[] = {&p.frames, &p.rows, &p.columns};
  for (int a = 0; a < 3; ++a) {
    for (int64_t i = 0; i < tokens; ++i) {
      double at = ids.data<float>()[i * 3 + a];
      if (std::find(axes[a]->begin(), axes[a]->end(), at) == axes[a]->end()) axes[a]->push_back(at);
    }
  }
  return p;
}

}  // namespace kinora::test
