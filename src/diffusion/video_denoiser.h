// The video transformer as a component: opened from published files, compiled for the shapes it meets.
#pragma once

#include <functional>
#include <string>

#include "diffusion/components.h"
#include "diffusion/video_model.h"

namespace kinora {

struct MmditFiles {
  MmditConfig config;
  Weights weights;
};

enum class MmditRole { film, picture };

// The transformer at `path`: a safetensors file, or a folder that holds one under its published name
// (Open_Sora_v2, Open_Sora_v2_Video_DC_AE or mmdit for films; flux1-dev for pictures), in one file or in shards.
// Its config is inferred; <name>.json beside it, with Open-Sora's keys, says more. Throws Error(io) or Error(model).
MmditFiles open_mmdit(const std::string& path, MmditRole role);

// True when open_mmdit would find a file there.
bool has_mmdit(const std::string& path, MmditRole role);
// Its name without ".safetensors"; empty when there is none.
std::string mmdit_base(const std::string& path, MmditRole role);

class VideoDenoiser : public VideoModel {
 public:
  // Throws Error(model) unless the weights are just those that the config asks for.
  VideoDenoiser(MmditConfig config, Weights weights, Runtime runtime);

  const MmditConfig& config() const override { return config_; }
  const Weights& weights() const { return weights_; }
  Tensor predict(const VideoModelInputs& inputs) override;
  // Called with what each run is given, before it; empty: no more.
  void observe(std::function<void(const VideoModelInputs&)> observer) { observer_ = std::move(observer); }

  // Sizes of one compiled graph. Positions are inputs, so that any positions on a grid of this size share it.
  struct Extent {
    int64_t batch, frames, rows, columns, text;
  };
  static Extent extent_of(const VideoModelInputs& inputs);
  Graph graph(const Extent& extent) const;
  std::map<std::string, Tensor> feed(const VideoModelInputs& inputs) const;  // the graph's inputs by name
  size_t memory(const Extent& extent);                                       // bytes of activations when compiled
  const Executable& compiled(const Extent& extent);

 private:
  std::function<void(const VideoModelInputs&)> observer_;
  MmditConfig config_;
  mutable Weights weights_;  // prepared when a graph first needs them
  Runtime runtime_;
  ExecutableCache cache_;
};

}  // namespace kinora
