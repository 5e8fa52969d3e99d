// The models against diffusers and transformers: tests/golden/make_models.py made the files.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "diffusion/components.h"
#include "graph/split.h"
#include "sana_golden.h"
#include "support.h"

namespace kinora::test {
namespace {

Runtime runtime(int threads = 2) { return {&cpu::backend(), context(threads), DType::f32}; }

class SanaGolden : public testing::TestWithParam<const char*> {};

TEST_P(SanaGolden, Forward) {
  Golden golden(GetParam());
  Denoiser model(read_sana_config(golden.config), golden.weights, runtime());
  DenoiseInputs in = sana_inputs(golden, model.config());
  EXPECT_EQ(in.lengths.values<int32_t>()[1], 3);
  expect_close(model.predict(in), golden.channels_last("out.sample"), DType::f32, kModelTerms, GetParam());
  in.lengths = {};
  expect_close(model.predict(in), golden.channels_last("out.sample"), DType::f32, kModelTerms,
               GetParam() + std::string(" with a mask"));
}

// Cut in two as a loop on a device runs it: what depends on the caption once, then any number of steps.
TEST_P(SanaGolden, InTwoHalves) {
  Golden golden(GetParam());
  Denoiser model(read_sana_config(golden.config), golden.weights, runtime());
  DenoiseInputs in = sana_inputs(golden, model.config());
  const Shape& s = in.latents.shape();
  Split halves = split(model.graph(s[0], s[1], s[2], in.caption.shape()[1]), {"latents", "timestep"});
  auto reads = [](const Graph& graph, const std::string& name) {
    return std::any_of(graph.nodes().begin(), graph.nodes().end(), [&](const Node& n) { return n.name == name; });
  };
  EXPECT_FALSE(reads(halves.before, "latents"));
  EXPECT_FALSE(reads(halves.after, "caption"));
  std::map<std::string, Tensor> feed = model.feed(in);
  feed.merge(compile(halves.before, *model.runtime().backend, model.runtime().context).run(feed));
  Executable after = compile(halves.after, *model.runtime().backend, model.runtime().context);
  Tensor once = after.run(feed).at("sample");
  expect_close(once, golden.channels_last("out.sample"), DType::f32, kModelTerms, GetParam());
  EXPECT_EQ(std::memcmp(after.run(feed).at("sample").raw(), once.raw(), once.bytes()), 0);
}

INSTANTIATE_TEST_SUITE_P(Variants, SanaGolden,
                         testing::Values("sana_base", "sana_qk_norm", "sana_sprint", "sana_positions", "sana_patch2"));

// Attention to a caption does not know the order of its tokens, so a mask with holes says what lengths say of the
// tokens moved together.
TEST(SanaMask, WithHolesIsTheCaptionInAnotherOrder) {
  Golden golden("sana_base");
  Denoiser model(read_sana_config(golden.config), golden.weights, runtime());
  DenoiseInputs in = sana_inputs(golden, model.config()), moved = in;
  int64_t tokens = in.mask.shape()[1], width = in.caption.shape()[2];
  in.mask = Tensor::from({2, tokens}, std::vector<float>{0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 1});
  in.lengths = mask_lengths(in.mask);
  EXPECT_FALSE(in.lengths.defined());
  moved.caption = in.caption.clone();
  std::vector<int32_t> lengths(2, 0);
  for (int64_t i = 0; i < 2 * tokens; ++i) {
    if (in.mask.data<float>()[i] == 0) continue;
    int64_t to = i / tokens * tokens + lengths[size_t(i / tokens)]++;
    std::copy_n(in.caption.data<float>() + i * width, width, moved.caption.data<float>() + to * width);
  }
  moved.lengths = Tensor::from({2}, lengths);
  expect_close(model.predict(in), model.predict(moved), DType::f32, kModelTerms, "holes");
}

TEST(SanaMask, LengthsAreForPaddingBehindTheTokensAlone) {
  auto lengths = [](const std::vector<float>& mask) { return mask_lengths(Tensor::from({2, 3}, mask)); };
  auto expect = [&](const std::vector<float>& mask, int32_t first, int32_t second) {
    Tensor got = lengths(mask);
    ASSERT_TRUE(got.defined());
    EXPECT_EQ(got.shape(), (Shape{2}));
    EXPECT_EQ(got.values<int32_t>()[0], first);
    EXPECT_EQ(got.values<int32_t>()[1], second);
  };
  expect({1, 1, 1, 1, 0, 0}, 3, 1);
  expect({1, 1, 0, 1, 1, 1}, 2, 3);
  for (const std::vector<float>& mask : std::vector<std::vector<float>>{{1, 1, 1, 0, 0, 0},
                                                                        {0, 1, 1, 1, 1, 1},
                                                                        {1, 0, 1, 1, 1, 1},
                                                                        {1, 0.5f, 0, 1, 1, 1},
                                                                        {1, 1, 1, 1, 0, 0.25f},
                                                                        {1, 1, NAN, 1, 1, 1}}) {
    EXPECT_FALSE(lengths(mask).defined());
  }
}

// The checkpoints trained in float16 need its limits: without the clamp the result is another one.
TEST(SanaFp16, ClampsLinearAttentionToItsRange) {
  Golden golden("sana_fp16");
  DenoiseInputs in;
  in.latents = golden.channels_last("in.latents");
  in.timestep = golden.tensor("in.timestep");
  in.caption = golden.tensor("in.caption");
  in.mask = golden.tensor("in.mask");
  Tensor expected = golden.channels_last("out.sample");
  SanaConfig config = read_sana_config(golden.config);
  auto predict = [&](bool clamp, DType dtype) {
    config.fp16_clamp = clamp;
    Runtime r = runtime();
    r.dtype = dtype;
    return Denoiser(config, golden.weights, r).predict(in);
  };
  expect_close(predict(true, DType::f16), expected, DType::f16, kModelTerms, "float16");
  expect_close(predict(true, DType::f32), expected, DType::f16, kModelTerms, "float32 with float16's clamp");
  Tensor free = predict(false, DType::f32);
  double peak = 0, worst = 0;
  for (int64_t i = 0; i < free.numel(); ++i) {
    peak = std::max<double>(peak, std::abs(expected.data<float>()[i]));
    worst = std::max<double>(worst, std::abs(free.data<float>()[i] - expected.data<float>()[i]));
  }
  EXPECT_GT(worst, 2 * tolerance(DType::f16, kModelTerms) * peak) << "the clamp is not reached";
}

class DcAeGolden : public testing::TestWithParam<const char*> {};

TEST_P(DcAeGolden, EncodeAndDecode) { expect_dc_ae_golden(GetParam(), runtime()); }

INSTANTIATE_TEST_SUITE_P(Variants, DcAeGolden,
                         testing::Values("dcae_published", "dcae_shuffle", "dcae_small", "dcae_lite", "dcae_tiled"));

class Gemma2Golden : public testing::TestWithParam<const char*> {};

TEST_P(Gemma2Golden, LastHiddenState) { expect_gemma2_golden(GetParam(), runtime()); }

INSTANTIATE_TEST_SUITE_P(Variants, Gemma2Golden, testing::Values("gemma2_softcap", "gemma2_plain"));

TEST(ModelErrors, NameTheTensorAndBothShapes) {
  Golden golden("sana_base");
  SanaConfig config = read_sana_config(golden.config);
  Weights missing, extra = golden.weights, misshapen;
  extra.add("transformer_blocks.0.surprise", Tensor::zeros({2}));
  for (const std::string& name : golden.weights.names()) {
    const Tensor& tensor = *golden.weights.find(name);
    if (name != "proj_out.bias") missing.add(name, tensor);
    misshapen.add(name, name == "proj_out.bias" ? Tensor::zeros({3}) : tensor, "weights.safetensors");
  }
  auto message = [&](const Weights& weights) {
    return message_of([&] { Denoiser model(config, weights, runtime()); }, ErrorKind::model);
  };
  EXPECT_NE(message(missing).find("'proj_out.bias' [8] is missing"), std::string::npos) << message(missing);
  EXPECT_NE(message(extra).find("'transformer_blocks.0.surprise'"), std::string::npos) << message(extra);
  std::string shapes = message(misshapen);
  EXPECT_NE(shapes.find("weights.safetensors has shape [3], but config.json asks for [8]"), std::string::npos)
      << shapes;
}

}  // namespace
}  // namespace kinora::test
