// The video transformer against Open-Sora's code and diffusers': tests/golden/make_mmdit.py made the files.
#include <cstring>

#include "models/mmdit_golden.h"

namespace kinora::test {
namespace {

constexpr int64_t kModelTerms = 1 << 14;  // sums of about this many terms follow one another through a whole model

VideoModelInputs inputs_of(const MmditGolden& golden) {
  VideoModelInputs in;
  in.latents = golden.tensor("in.img");
  if (golden.file.has("in.cond")) in.cond = golden.tensor("in.cond");
  in.text = golden.tensor("in.txt");
  in.pooled = golden.tensor("in.y_vec");
  in.timestep = golden.tensor("in.timesteps");
  if (golden.file.has("in.guidance")) in.guidance = golden.tensor("in.guidance");
  in.positions = positions_of(golden.tensor("in.img_ids"));
  return in;
}

class MmditForward : public testing::TestWithParam<const char*> {};

TEST_P(MmditForward, EqualsTheReference) {
  MmditGolden golden(GetParam());
  VideoDenoiser model = golden.model();
  expect_close(model.predict(inputs_of(golden)), golden.tensor("out.velocity"), DType::f32, kModelTerms, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Variants, MmditForward,
                         testing::Values("mmdit_opensora", "mmdit_patch1", "mmdit_fractions", "mmdit_flux",
                                         "mmdit_fused_halves", "mmdit_split_pairs", "mmdit_flux_diffusers"));

TEST(MmditConfigTest, IsInferredFromTheTensors) {
  for (const char* name : {"mmdit_opensora", "mmdit_patch1", "mmdit_flux", "mmdit_fused_halves", "mmdit_split_pairs"}) {
    MmditGolden golden(name);
    MmditConfig c = infer_mmdit_config(golden.weights), told = read_mmdit_config(golden.config, golden.weights);
    EXPECT_EQ(c.in_channels, told.in_channels) << name;
    EXPECT_EQ(c.patch_size, told.patch_size) << name;
    EXPECT_EQ(c.hidden, told.hidden) << name;
    EXPECT_EQ(c.heads, told.heads) << name;
    EXPECT_EQ(c.mlp_hidden, told.mlp_hidden) << name;
    EXPECT_EQ(c.depth, told.depth) << name;
    EXPECT_EQ(c.single_depth, told.single_depth) << name;
    EXPECT_EQ(c.text_dim, told.text_dim) << name;
    EXPECT_EQ(c.pooled_dim, told.pooled_dim) << name;
    EXPECT_EQ(c.fused_qkv, told.fused_qkv) << name;
    EXPECT_EQ(c.guidance_embed, told.guidance_embed) << name;
    EXPECT_EQ(c.cond_embed, told.cond_embed) << name;
    EXPECT_EQ(c.qkv_bias, told.qkv_bias) << name;
  }
}

// A head as wide as the published ones: 128 channels are turned as 16, 56 and 56.
TEST(MmditConfigTest, KnowsThePublishedHeads) {
  Weights weights;
  weights.add("img_in.weight", Tensor::zeros({256, 64}));
  weights.add("txt_in.weight", Tensor::zeros({256, 4}));
  weights.add("vector_in.in_layer.weight", Tensor::zeros({256, 3}));
  weights.add("single_blocks.0.modulation.lin.weight", Tensor::zeros({768, 256}));
  weights.add("single_blocks.0.norm.query_norm.scale", Tensor::zeros({128}));
  weights.add("single_blocks.0.linear2.weight", Tensor::zeros({256, 300}));
  MmditConfig c = infer_mmdit_config(weights);
  EXPECT_EQ(c.axes_dim, (std::array<int64_t, 3>{16, 56, 56}));
  EXPECT_EQ(c.heads, 2);
  EXPECT_EQ(c.mlp_hidden, 44);
  EXPECT_EQ(c.patch_size, 2);
  EXPECT_EQ(c.latent_channels(), 16);
  weights.add("cond_in.weight", Tensor::zeros({256, 66}));
  EXPECT_THROW(infer_mmdit_config(weights), Error);
}

TEST(MmditErrors, NameTheTensorAndBothShapes) {
  MmditGolden golden("mmdit_opensora");
  MmditConfig config = read_mmdit_config(golden.config, golden.weights);
  auto message = [&](const std::string& changed, const Tensor& tensor) {
    Weights weights;
    for (const std::string& name : golden.weights.names()) {
      if (name != changed) weights.add(name, *golden.weights.find(name));
    }
    if (tensor.defined()) weights.add(changed, tensor, "weights.safetensors");
    try {
      VideoDenoiser model(config, weights, {&cpu::backend(), context(1), DType::f32});
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::model);
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const std::string part = "single_blocks.1.v_mlp.bias";
  EXPECT_NE(message(part, {}).find("'" + part + "' [128] is missing"), std::string::npos) << message(part, {});
  EXPECT_NE(message(part, Tensor::zeros({3})).find("has shape [3], but config.json asks for [128]"), std::string::npos);
  EXPECT_NE(message("surprise", Tensor::zeros({2})).find("'surprise'"), std::string::npos);
}

TEST(MmditBfloat16, IsNearFloat32) {
  MmditGolden golden("mmdit_opensora");
  VideoDenoiser model = golden.model(2, DType::bf16);
  expect_close(model.predict(inputs_of(golden)), golden.tensor("out.velocity"), DType::bf16, 64, "bfloat16");
}

// Rows of a batch do not know of each other.
TEST(MmditBatch, DoesNotChangeABit) {
  MmditGolden golden("mmdit_opensora");
  VideoDenoiser model = golden.model();
  VideoModelInputs both = inputs_of(golden);
  Tensor together = model.predict(both);
  for (int64_t i = 0; i < 2; ++i) {
    VideoModelInputs one{both.latents.rows(i, i + 1),
                         both.cond.rows(i, i + 1),
                         both.text.rows(i, i + 1),
                         both.pooled.rows(i, i + 1),
                         both.timestep.rows(i, i + 1),
                         {},
                         both.positions};
    Tensor alone = model.predict(one);
    EXPECT_EQ(std::memcmp(alone.raw(), together.rows(i, i + 1).raw(), alone.bytes()), 0) << i;
  }
}

}  // namespace
}  // namespace kinora::test
