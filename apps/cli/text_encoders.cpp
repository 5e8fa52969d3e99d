// kinora eval with the folder of a text encoder by itself.
#include "diffusion/text_encoders.h"

#include <filesystem>

#include "cli.h"
#include "measure.h"

namespace kinora::cli {
namespace {

bool is_t5(const std::string& type) { return type == "t5" || type == "mt5"; }
bool is_clip(const std::string& type) { return type == "clip" || type == "clip_text_model"; }

std::string model_type(const std::string& folder) {
  std::filesystem::path base(folder);
  if (std::filesystem::exists(base / "model_index.json") || !std::filesystem::exists(base / "config.json")) return "";
  return Config::load((base / "config.json").string()).text("model_type", "");
}

}  // namespace

Tensor input_ids(const SafetensorsFile& in) {
  Tensor x = in.tensor("input_ids");
  if (x.shape().rank() != 2) fail(ErrorKind::input, "'input_ids' must have 2 axes, not shape " + x.shape().str());
  if (x.dtype() == DType::i32) return x;
  if (x.dtype() != DType::i64) fail(ErrorKind::input, "'input_ids' must be I32 or I64");
  std::vector<int32_t> ids;
  for (int64_t id : x.values<int64_t>()) {
    if (id < 0 || id > INT32_MAX)
      fail(ErrorKind::input, "'input_ids' holds " + std::to_string(id) + ", which is no id");
    ids.push_back(static_cast<int32_t>(id));
  }
  return Tensor::from(x.shape(), ids);
}

bool is_text_encoder(const std::string& folder) {
  std::string type = model_type(folder);
  return is_t5(type) || is_clip(type);
}

std::vector<std::pair<std::string, Tensor>> evaluate_text_encoder(const std::string& folder, const SafetensorsFile& in,
                                                                  const Runtime& runtime, const EvalTiming& timing) {
  Tensor ids = input_ids(in);
  if (is_clip(model_type(folder))) {
    ClipTextEncoder::Output out = ClipTextEncoder::load(folder, runtime).encode(ids);
    return {{"last_hidden_state", out.hidden}, {"pooler_output", out.pooled}};
  }
  Tensor mask;
  if (in.has("attention_mask")) {
    mask = in.tensor("attention_mask").to(DType::f32);
    if (!(mask.shape() == ids.shape()))
      fail(ErrorKind::input, "'attention_mask' must have the shape of 'input_ids', " + ids.shape().str());
  }
  T5Encoder encoder = T5Encoder::load(folder, runtime);
  Tensor hidden = encoder.encode(ids, mask);
  std::map<std::string, Tensor> feed{{"ids", ids}};
  if (mask.defined()) feed["mask"] = mask;
  timing.report("text_encoder", encoder.compiled(ids.shape()[0], ids.shape()[1], mask.defined()), feed, runtime);
  return {{"last_hidden_state", hidden}};
}

}  // namespace kinora::cli
