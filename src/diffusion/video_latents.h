// Latents of films: noise, packing into tokens, and the condition that pictures and films given by the user make.
// Unpacked latents are [1, frames, height, width, channels] f32, packed ones [1, tokens, channels · patch²].
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "diffusion/video_size.h"

namespace kinora {

// A token's channels are c·patch² + dy·patch + dx; the column varies fastest, the frame slowest.
Tensor pack_latents(const Tensor& latents, int64_t patch);
Tensor unpack_latents(const Tensor& packed, const VideoShape& shape);

// Each frame in another size, bilinearly (torch.nn.functional.interpolate, corners not aligned): to refine a small
// film.
Tensor resize_latents(const Tensor& latents, int64_t height, int64_t width);

enum class NoiseKind {
  cpu,   // torch's CPU generator, float32
  cuda,  // torch's CUDA generator, rounded to bfloat16, as the reference's program draws on its GPU
};
// Noise as the reference draws it, in the order [1, channels, frames, height, width]; returned unpacked.
Tensor video_noise(const VideoShape& shape, uint64_t seed, NoiseKind kind = NoiseKind::cpu);

// What is given besides the text.
enum class VideoTask {
  text,         // nothing
  head,         // the first picture
  tail,         // the last picture
  loop,         // the first picture and the last
  extend_head,  // the first 33 or 65 frames
  extend_tail,  // the last 33 or 65 frames
};
struct VideoTaskInfo {
  VideoTask task = VideoTask::text;
  int64_t frames = 0;  // of a film to be extended: 33 or 65; else 0
};
// By the reference's names: t2v, i2v_head, i2v_tail, i2v_loop, v2v_head, v2v_tail (33 frames), v2v_head_easy,
// v2v_tail_easy (65 frames). Throws Error(usage).
VideoTaskInfo video_task(const std::string& name);

// Frames to encode for one reference of a task, of an autoencoder that is causal or not: 0, 1, 33 or 65 (32 or 64).
int64_t reference_frames(const VideoTaskInfo& task, const VideoLayout& layout);

struct VideoCondition {
  VideoTask task = VideoTask::text;
  Tensor packed;  // [1, tokens, (channels + 1) · patch²]: the mask, then the masked latents

  bool none() const { return task == VideoTask::text; }
  bool picture() const { return task == VideoTask::head || task == VideoTask::tail || task == VideoTask::loop; }
};

// `references`: scaled latents, one for each picture or film the task takes (loop: first, last), of as many latent
// frames as reference_frames make. Throws Error(usage) when the film is too short for the task, Error(internal) on
// shapes.
VideoCondition video_condition(const VideoTaskInfo& task, const VideoShape& shape, std::span<const Tensor> references);

// Puts the given pictures in the place of the latents made, as the reference does before decoding (films stay).
void restore_pictures(Tensor& latents, VideoTask task, std::span<const Tensor> references);

}  // namespace kinora
