// T5 and CLIP against transformers: tests/golden/make_text_encoders.py made the files.
#include "diffusion/text_encoders.h"
#include "golden.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

Runtime runtime(DType dtype = DType::f32) { return {&cpu::backend(), context(2), dtype}; }

double rms_error(const Tensor& got, const Tensor& expected) {
  double total = 0;
  for (int64_t i = 0; i < got.numel(); ++i) {
    double d = got.data<float>()[i] - expected.data<float>()[i];
    total += d * d;
  }
  return std::sqrt(total / static_cast<double>(got.numel()));
}

// Within the table, and no further from float32 than PyTorch's own bfloat16.
void expect_bf16(const Golden& golden, const Tensor& got, const std::string& what) {
  // About a thousand terms: those of the sums that follow one another through three layers.
  expect_close(got, golden.tensor("out.hidden"), DType::bf16, 1 << 10, what);
  double peer = rms_error(golden.tensor("out.hidden_bf16"), golden.tensor("out.hidden"));
  EXPECT_LE(rms_error(got, golden.tensor("out.hidden")), peer) << what;
}

class T5Golden : public testing::TestWithParam<const char*> {};

TEST_P(T5Golden, HiddenStates) {
  Golden golden(GetParam());
  T5Encoder model(read_t5_config(golden.config), golden.weights, runtime());
  Tensor ids = golden.tensor("in.ids"), mask = golden.tensor("in.mask");
  expect_close(model.encode(ids), golden.tensor("out.hidden"), DType::f32, kModelTerms, GetParam());
  Tensor masked = model.encode(ids, mask);
  int64_t width = masked.shape()[2];
  for (int64_t i = 0; i < masked.numel(); ++i) masked.data<float>()[i] *= mask.data<float>()[i / width];
  expect_close(masked, golden.tensor("out.masked"), DType::f32, kModelTerms, GetParam() + std::string(" masked"));
}

TEST_P(T5Golden, Bfloat16) {
  Golden golden(GetParam());
  T5Encoder model(read_t5_config(golden.config), golden.weights, runtime(DType::bf16));
  expect_bf16(golden, model.encode(golden.tensor("in.ids")), GetParam());
}

INSTANTIATE_TEST_SUITE_P(Variants, T5Golden, testing::Values("t5_gated", "t5_relu", "t5_gated_silu", "t5_gelu"));

TEST(T5, PositionBucketsEqualPyTorch) {
  SafetensorsFile file = SafetensorsFile::open(source_folder() + "/tests/golden/t5_buckets.safetensors");
  EXPECT_GE(file.header().entries.size(), 8u);
  for (const SafetensorsEntry& entry : file.header().entries) {
    int64_t buckets = std::stoll(entry.name), far = std::stoll(entry.name.substr(entry.name.find('_') + 1));
    Tensor table = file.tensor(entry);
    for (int64_t i = 0; i < table.numel(); ++i) {
      ASSERT_EQ(t5_position_bucket(i - 600, buckets, far), table.data<int32_t>()[i]) << entry.name << " " << i - 600;
    }
  }
}

class ClipGolden : public testing::TestWithParam<const char*> {};

TEST_P(ClipGolden, HiddenStatesAndPooled) {
  Golden golden(GetParam());
  ClipTextEncoder model(read_clip_text_config(golden.config), golden.weights, runtime());
  ClipTextEncoder::Output out = model.encode(golden.tensor("in.ids"));
  expect_close(out.hidden, golden.tensor("out.hidden"), DType::f32, kModelTerms, GetParam());
  expect_close(out.pooled, golden.tensor("out.pooled"), DType::f32, kModelTerms, GetParam() + std::string(" pooled"));
}

TEST_P(ClipGolden, Bfloat16) {
  Golden golden(GetParam());
  ClipTextEncoder model(read_clip_text_config(golden.config), golden.weights, runtime(DType::bf16));
  expect_bf16(golden, model.encode(golden.tensor("in.ids")).hidden, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Variants, ClipGolden, testing::Values("clip_quick_gelu", "clip_gelu"));

TEST(Clip, TextConfigInsideAWholeModelsConfig) {
  ClipTextConfig c = read_clip_text_config(Config::parse(
      R"({"model_type": "clip", "hidden_size": 5, "text_config": {"hidden_size": 64, "num_attention_heads": 4,
          "eos_token_id": 2, "hidden_act": "gelu"}, "text_config_dict": {"hidden_size": 96}})",
      "config.json"));
  EXPECT_EQ(c.hidden_size, 96);
  EXPECT_EQ(c.heads, 4);
  EXPECT_EQ(c.eos_token_id, 2);
  EXPECT_EQ(c.activation, "gelu");
}

// Published folders hold more than the encoder, in shards.
TEST(TextEncoderFolders, AreReadAsPublished) {
  TempFolder temp;
  auto write = [&](const std::string& golden_name, const std::string& config, std::vector<std::string> extra) {
    Golden golden(golden_name);
    std::vector<std::pair<std::string, Tensor>> first, second;
    std::string map;
    auto add = [&](auto& shard, const std::string& name, const Tensor& tensor, int number) {
      shard.emplace_back(name, tensor);
      map += (map.empty() ? "\"" : ", \"") + name + "\": \"model-0000" + std::to_string(number) +
             "-of-00002.safetensors\"";
    };
    for (const std::string& name : golden.weights.names()) add(first, name, *golden.weights.find(name), 1);
    for (const std::string& name : extra) add(second, name, Tensor::zeros({2, 3}), 2);
    std::string folder = temp.path(golden_name);
    std::filesystem::create_directory(folder);
    write_safetensors(folder + "/model-00001-of-00002.safetensors", first);
    write_safetensors(folder + "/model-00002-of-00002.safetensors", second);
    write_atomically(folder + "/model.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
    write_atomically(folder + "/config.json", config.empty() ? golden.config.dump() : config);
    return folder;
  };
  std::string t5 =
      write("t5_gated", "",
            {"decoder.block.0.layer.0.SelfAttention.q.weight", "lm_head.weight", "encoder.embed_tokens.weight"});
  Golden golden("t5_gated");
  expect_close(T5Encoder::load(t5, runtime()).encode(golden.tensor("in.ids")), golden.tensor("out.hidden"), DType::f32,
               kModelTerms, "t5 folder");
  Golden quick("clip_quick_gelu");
  std::string clip =
      write("clip_quick_gelu", "{\"model_type\": \"clip\", \"text_config\": " + quick.config.dump() + "}",
            {"vision_model.post_layernorm.weight", "text_projection.weight", "logit_scale",
             "text_model.embeddings.position_ids"});
  expect_close(ClipTextEncoder::load(clip, runtime()).encode(quick.tensor("in.ids")).pooled, quick.tensor("out.pooled"),
               DType::f32, kModelTerms, "clip folder");
}

TEST(TextEncoderErrors, SayWhatIsWrong) {
  Golden golden("t5_gated");
  T5Config config = read_t5_config(golden.config);
  Weights extra = golden.weights;
  extra.add("encoder.block.7.layer.0.layer_norm.weight", Tensor::zeros({2}));
  EXPECT_NE(message_of([&] { T5Encoder(config, extra, runtime()); }, ErrorKind::model).find("encoder.block.7"),
            std::string::npos);
  T5Encoder model(config, golden.weights, runtime());
  EXPECT_NE(message_of(
                [&] {
                  model.encode(Tensor::from({1, 2}, std::vector<int32_t>{5, 90}));
                },
                ErrorKind::input)
                .find("token id 90"),
            std::string::npos);
  EXPECT_NE(message_of(
                [&] {
                  model.encode(Tensor::zeros({1, 5000}, DType::i32));
                },
                ErrorKind::usage)
                .find("too long"),
            std::string::npos);
  Golden quick("clip_quick_gelu");
  ClipTextEncoder clip(read_clip_text_config(quick.config), quick.weights, runtime());
  EXPECT_NE(message_of(
                [&] {
                  clip.encode(Tensor::from({1, 25}, std::vector<int32_t>(25, 3)));
                },
                ErrorKind::usage)
                .find("at most 24"),
            std::string::npos);
  for (const char* text : {R"({"feed_forward_proj": "gated-tanh"})", R"({"relative_attention_num_buckets": 6})",
                           R"({"relative_attention_max_distance": 8})", R"({"num_heads": 0})"}) {
    message_of([&] { EXPECT_THROW(read_t5_config(Config::parse(text, "c")), Error) << text; }, ErrorKind::model);
  }
  for (const char* text : {R"({"hidden_act": "swoosh"})", R"({"num_attention_heads": 7})"}) {
    message_of([&] { EXPECT_THROW(read_clip_text_config(Config::parse(text, "c")), Error) << text; }, ErrorKind::model);
  }
}

}  // namespace
}  // namespace kinora::test
