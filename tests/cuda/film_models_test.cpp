// The autoencoders of films on the GPU against Open-Sora's goldens, and what a batch may not change.
#include <cstring>

#include "cuda/kernels.h"
#include "cuda_support.h"
#include "diffusion/video_autoencoder.h"
#include "golden.h"
#include "ops/attention.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/shaping.h"

namespace kinora::test {
namespace {

void expect_same(const Tensor& got, const Tensor& expected, const std::string& what) {
  expect_close(got, expected, DType::f32, kModelTerms, what);
}

VideoAutoencoder causal_model(const Golden& golden, DType dtype = DType::f32) {
  return {read_causal_vae3d_config(golden.config), golden.weights, gpu_runtime(dtype)};
}

TEST(CudaCausalVae3d, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  Golden golden("vae3d");
  VideoAutoencoder model = causal_model(golden);
  expect_same(model.encode(golden.film("in.film")), golden.film("out.latents"), "encode");
  expect_same(model.encode(golden.film("in.picture")), golden.film("out.picture_latents"), "one frame");
  expect_same(model.decode(golden.film("in.latents")), golden.film("out.film"), "decode");
}

TEST(CudaCausalVae3d, TilesAsTheGolden) {
  KINORA_NEEDS_GPU();
  Golden weights("vae3d"), golden("vae3d_tiled");
  VideoAutoencoder model = causal_model(weights);
  model.tiling = {.space = true, .time = true, .size = 32, .frames = 16};
  expect_same(model.encode(golden.film("in.long")), golden.film("out.long_latents"), "encode");
  expect_same(model.decode(golden.film("in.long_latents")), golden.film("out.long"), "decode");
}

TEST(CudaCausalVae3d, HalfPrecisionIsNearFloat32AndTheSameAgain) {
  KINORA_NEEDS_GPU();
  Golden golden("vae3d");
  Tensor latents = golden.film("in.latents");
  for (DType dtype : {DType::bf16, DType::f16}) {
    VideoAutoencoder model = causal_model(golden, dtype);
    Tensor film = model.decode(latents), again = model.decode(latents),
           other = causal_model(golden, dtype).decode(latents);
    expect_close(film, golden.film("out.film"), dtype, 16, std::string(dtype_name(dtype)));
    EXPECT_EQ(std::memcmp(film.raw(), again.raw(), film.bytes()), 0);
    EXPECT_EQ(std::memcmp(film.raw(), other.raw(), film.bytes()), 0);
  }
}

TEST(CudaVideoDcAe, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  Golden golden("dcae_video");
  VideoAutoencoder model(read_video_dc_ae_config(golden.config), golden.weights, gpu_runtime());
  model.tiling = {.space = false, .time = false};
  expect_same(model.encode(golden.film("in.film")), golden.film("out.latents"), "encode");
  expect_same(model.decode(golden.film("in.latents")), golden.film("out.film"), "decode");
  expect_same(model.decode(golden.film("in.latents1")), golden.film("out.picture"), "decode one frame");
}

TEST(CudaFluxAe, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  Golden golden("flux_ae");
  FluxAutoencoder model(read_flux_ae_config(golden.config), golden.weights, gpu_runtime());
  expect_same(model.encode(golden.channels_last("in.picture")), golden.channels_last("out.latents"), "encode");
  expect_same(model.decode(golden.channels_last("in.latents")), golden.channels_last("out.picture"), "decode");
}

// The kernel that stands in where cuDNN has no plan, for sizes that fill its tiles and that do not.
TEST(CudaFilmOps, OwnConvolutionAgreesWithTheCpu) {
  KINORA_NEEDS_GPU();
  std::vector<Kernel> kernels(cuda::backend().kernels.begin(), cuda::backend().kernels.end());
  std::erase_if(kernels, [](const Kernel& row) { return row.make == cuda::make_conv3d; });
  Backend own{"own", kernels, {}, cuda::backend().host};
  struct Sizes {
    Shape x, w;
    std::string act;
  };
  for (const Sizes& c :
       {Sizes{{2, 3, 4, 5, 128}, {520, 2, 2, 2, 128}, "silu"}, Sizes{{1, 4, 9, 11, 64}, {72, 3, 3, 3, 64}, "none"},
        Sizes{{1, 3, 3, 3, 64}, {8, 3, 3, 3, 64}, "relu"}, Sizes{{1, 4, 18, 19, 192}, {256, 3, 2, 2, 192}, "gelu_tanh"},
        Sizes{{1, 5, 33, 40, 128}, {128, 3, 3, 3, 128}, "none"}}) {
    for (DType dtype : {DType::bf16, DType::f16}) {
      auto build = [&](DType type) {
        Graph graph;
        auto given = [&](const std::string& name, const Shape& shape) { return cast(graph.input(name, shape), type); };
        Value y =
            conv3d(given("x", c.x), given("w", c.w), given("bias", {c.w[0]}), {.act = c.act, .weight_layout = "othwi"});
        graph.output("y", cast(y, DType::f32));
        return graph;
      };
      std::map<std::string, Tensor> feed;
      for (const auto& [name, shape] : std::map<std::string, Shape>{{"x", c.x}, {"w", c.w}, {"bias", {c.w[0]}}})
        feed[name] = random_tensor(shape, name.size()).to(dtype).to(DType::f32);
      Runtime runtime = gpu_runtime();
      Tensor got = compile(build(dtype), own, runtime.context).run(feed).at("y");
      expect_close(got, run_graph(build(DType::f32), feed).at("y"), dtype, 1, c.x.str() + " " + c.w.str());
    }
  }
}

// A film's bits must not depend on what else is in the batch, nor on its place there.
TEST(CudaFilmOps, BatchInvariant) {
  KINORA_NEEDS_GPU();
  auto build = [](int64_t batch) {
    Graph graph;
    Value x = cast(graph.input("x", {batch, 3, 9, 10, 64}), DType::bf16);
    auto parameter = [&](const std::string& name, const Shape& shape) {
      return graph.parameter(name, random_tensor(shape, name.size(), -0.1f, 0.1f).to(DType::bf16));
    };
    Value y = pad_edge(group_norm(x, parameter("w", {64}), parameter("ww", {64}), 32, 1e-6, "silu"), {0, 2, 1, 1, 0},
                       {0, 0, 1, 1, 0});
    y = conv3d(y, parameter("www", {512, 64, 3, 3, 3}), parameter("wwww", {512}), {});
    Value tokens = reshape(y, {batch, 270, 1, 512});
    Value z = attention(tokens, tokens, tokens, {}, {.scale = 0.044, .causal = true, .block = 90});
    graph.output("y", cast(z, DType::f32));
    return graph;
  };
  Tensor films = random_tensor({3, 3, 9, 10, 64}, 4);
  Tensor together = run_on_gpu(build(3), {{"x", films}}).at("y");
  for (int64_t i = 0; i < 3; ++i) {
    Tensor alone = run_on_gpu(build(1), {{"x", films.rows(i, i + 1)}}).at("y"), same = together.rows(i, i + 1);
    EXPECT_EQ(std::memcmp(alone.raw(), same.raw(), alone.bytes()), 0) << "film " << i;
  }
}

}  // namespace
}  // namespace kinora::test
