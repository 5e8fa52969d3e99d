#include "diffusion/text_encoders.h"

#include "io/safetensors.h"
#include "ops/elementwise.h"

namespace kinora {
namespace {

Config component_config(const std::string& folder) { return Config::load(folder + "/config.json"); }

constexpr int64_t kMostTokens = 4096;  // the position bias grows with their square

// The graph's gather would report an id out of range as a bug of ours.
void check_ids(const Tensor& ids, int64_t vocab_size) {
  if (ids.shape().rank() != 2 || ids.numel() == 0 || ids.dtype() != DType::i32)
    fail(ErrorKind::input, "token ids must be i32 [batch, tokens], not " + ids.shape().str());
  if (ids.shape()[1] > kMostTokens) {
    fail(ErrorKind::usage, "a text of " + std::to_string(ids.shape()[1]) + " tokens is too long (at most " +
                               std::to_string(kMostTokens) + ")");
  }
  for (int32_t id : ids.values<int32_t>()) {
    if (id < 0 || id >= vocab_size) {
      fail(ErrorKind::input, "token id " + std::to_string(id) + " is outside the text encoder's vocabulary of " +
                                 std::to_string(vocab_size) + " (does the tokenizer belong to it?)");
    }
  }
}

// What of a published file belongs to the part of the model that is built here.
template <class Keep>
Weights only(const Weights& all, const Keep& keep) {
  Weights kept;
  kept.set_source(all.source());
  for (const std::string& name : all.names()) {
    if (!keep(name)) continue;
    kept.add(name, *all.find(name), all.file_of(name));
    if (auto format = all.format(name)) kept.set_format(name, *format);
  }
  return kept;
}

bool of_t5_encoder(const Weights& all, const std::string& name) {
  if (name == "encoder.embed_tokens.weight") return !all.find("shared.weight");
  return name == "shared.weight" || name.starts_with("encoder.");
}

bool of_clip_text(const Weights& all, const std::string& name) {
  if (name.ends_with("position_ids")) return false;  // a buffer that old files hold
  if (all.find("text_model.final_layer_norm.weight")) return name.starts_with("text_model.");
  return !name.starts_with("text_projection.");
}

}  // namespace

T5Encoder::T5Encoder(T5Config config, Weights weights, Runtime runtime)
    : config_(std::move(config)),
      weights_(only(weights, [&](const std::string& name) { return of_t5_encoder(weights, name); })),
      runtime_(std::move(runtime)) {
  Graph probe;  // names and shapes are checked before the first prompt
  Params params(probe, weights_);
  build_t5_encoder(params, config_, probe.input("ids", {1, 1}, DType::i32));
  params.expect_all_used();
}

T5Encoder T5Encoder::load(const std::string& folder, const Runtime& runtime, const std::string& variant) {
  T5Config config = read_t5_config(component_config(folder));
  return {config, open_weights(folder, "model", variant), runtime};
}

Graph T5Encoder::graph(int64_t batch, int64_t tokens, bool masked) const {
  prepare_weights(weights_, "t5", runtime_);
  Graph graph;
  Value ids = graph.input("ids", {batch, tokens}, DType::i32);
  Value mask = masked ? graph.input("mask", {batch, tokens}) : Value();
  Value hidden = build_t5_encoder(Params(graph, weights_), config_, ids, mask, runtime_.dtype);
  graph.output("hidden", cast(hidden, DType::f32));
  return graph;
}

Tensor T5Encoder::encode(const Tensor& ids, const Tensor& mask) {
  check_ids(ids, config_.vocab_size);
  int64_t batch = ids.shape()[0], tokens = ids.shape()[1];
  std::map<std::string, Tensor> feed{{"ids", ids}};
  if (mask.defined()) feed["mask"] = mask;
  return compiled(batch, tokens, mask.defined()).run(feed).at("hidden");
}

const Executable& T5Encoder::compiled(int64_t batch, int64_t tokens, bool masked) {
  return cache_.get({batch, tokens, masked}, runtime_, [&] { return graph(batch, tokens, masked); });
}

ClipTextEncoder::ClipTextEncoder(ClipTextConfig config, Weights weights, Runtime runtime)
    : config_(std::move(config)),
      weights_(only(weights, [&](const std::string& name) { return of_clip_text(weights, name); })),
      runtime_(std::move(runtime)) {
  Graph probe;
  Params params(probe, weights_);
  build_clip_text(params, config_, probe.input("ids", {1, 1}, DType::i32), probe.input("rows", {1}, DType::i32));
  params.expect_all_used();
}

ClipTextEncoder ClipTextEncoder::load(const std::string& folder, const Runtime& runtime, const std::string& variant) {
  ClipTextConfig config = read_clip_text_config(component_config(folder));
  return {config, open_weights(folder, "model", variant), runtime};
}

Graph ClipTextEncoder::graph(int64_t batch, int64_t tokens) const {
  prepare_weights(weights_, "clip", runtime_);
  Graph graph;
  Value ids = graph.input("ids", {batch, tokens}, DType::i32), rows = graph.input("rows", {batch}, DType::i32);
  ClipTextOutput out = build_clip_text(Params(graph, weights_), config_, ids, rows, runtime_.dtype);
  graph.output("hidden", out.hidden);
  graph.output("pooled", out.pooled);
  return graph;
}

ClipTextEncoder::Output ClipTextEncoder::encode(const Tensor& ids) {
  check_ids(ids, config_.vocab_size);
  int64_t batch = ids.shape()[0], tokens = ids.shape()[1];
  const Executable& exe = cache_.get({batch, tokens}, runtime_, [&] { return graph(batch, tokens); });
  std::vector<int32_t> rows = clip_pooled_positions(ids, config_);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] += static_cast<int32_t>(static_cast<int64_t>(i) * tokens);
  std::map<std::string, Tensor> out = exe.run({{"ids", ids}, {"rows", Tensor::from({batch}, rows)}});
  return {out.at("hidden"), out.at("pooled")};
}

}  // namespace kinora
