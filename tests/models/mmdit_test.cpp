// The video transformer against Open-Sora's code and diffusers': tests/golden/make_mmdit.py made the files.
#include <cstring>

#include "models/mmdit_golden.h"
#include "ops/grad.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

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
                                         "mmdit_flux_unguided", "mmdit_fused_halves", "mmdit_split_pairs",
                                         "mmdit_flux_diffusers"));

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

TEST(MmditFolder, IsOpenedByPublishedNamesAndInShards) {
  MmditGolden golden("mmdit_opensora");
  TempFolder temp;
  EXPECT_FALSE(has_mmdit(temp.path(), MmditRole::film));
  temp.write("mmdit.safetensors", "not a film's");  // found only where the published name is not
  std::vector<std::pair<std::string, Tensor>> shards[2];
  std::string map;
  for (const std::string& name : golden.weights.names()) {
    int shard = name < "img_in" ? 0 : 1;
    shards[shard].emplace_back(name, *golden.weights.find(name));
    map += (map.empty() ? "\"" : ", \"") + name + "\": \"part-" + std::to_string(shard) + ".safetensors\"";
  }
  for (int i : {0, 1}) write_safetensors(temp.path("part-" + std::to_string(i) + ".safetensors"), shards[i]);
  temp.write("Open_Sora_v2.safetensors.index.json", "{\"weight_map\": {" + map + "}}");
  temp.write("Open_Sora_v2.json", golden.config.dump());
  EXPECT_TRUE(has_mmdit(temp.path(), MmditRole::film));
  EXPECT_FALSE(has_mmdit(temp.path(), MmditRole::picture));
  EXPECT_FALSE(has_mmdit(temp.path("Open_Sora_v2.json"), MmditRole::film));
  MmditFiles files = open_mmdit(temp.path(), MmditRole::film);
  EXPECT_EQ(files.config.axes_dim, (std::array<int64_t, 3>{4, 6, 6}));
  VideoDenoiser opened(files.config, files.weights, {&cpu::backend(), context(2), DType::f32}), model = golden.model();
  Tensor a = opened.predict(inputs_of(golden)), b = model.predict(inputs_of(golden));
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.bytes()), 0);
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
    return message_of(
        [&] {
          VideoDenoiser model(config, weights, {&cpu::backend(), context(1), DType::f32});
        },
        ErrorKind::model);
  };
  const std::string part = "single_blocks.1.v_mlp.bias";
  EXPECT_NE(message(part, {}).find("'" + part + "' [128] is missing"), std::string::npos) << message(part, {});
  EXPECT_NE(message(part, Tensor::zeros({3})).find("has shape [3], but config.json asks for [128]"), std::string::npos);
  EXPECT_NE(message("surprise", Tensor::zeros({2})).find("'surprise'"), std::string::npos);
}

// Of the loss Σ velocity · latents, with respect to a parameter of each kind.
TEST(MmditGradient, EqualsTheReference) {
  for (const char* name : {"mmdit_opensora", "mmdit_flux_unguided"}) {
    MmditGolden golden(name);
    VideoDenoiser model = golden.model();
    VideoModelInputs in = inputs_of(golden);
    Graph forward = model.graph(VideoDenoiser::extent_of(in));
    Graph graph = expand_for_grad(forward);
    std::vector<Value> wrt;
    std::vector<std::string> names;
    for (size_t i = 0; i < graph.nodes().size(); ++i) {
      const Node& node = graph.nodes()[i];
      if (node.op != &kParameterOp || !golden.file.has("grad." + node.name)) continue;
      wrt.emplace_back(&graph, static_cast<NodeId>(i));
      names.push_back(node.name);
    }
    ASSERT_EQ(wrt.size(), 6u) << name;
    std::vector<Value> grads =
        gradients(Value(&graph, graph.outputs().at(0).second), wrt, graph.input("seed", in.latents.shape()));
    for (size_t i = 0; i < grads.size(); ++i) graph.output("grad." + names[i], grads[i]);
    std::map<std::string, Tensor> feed = model.feed(in);
    feed["seed"] = in.latents;
    auto results = run_graph(graph, feed);
    for (const std::string& n : names) {
      expect_close(results.at("grad." + n), golden.tensor("grad." + n), DType::f32, kModelTerms,
                   std::string(name) + " " + n);
    }
  }
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
