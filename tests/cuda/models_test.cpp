// The models on the GPU against the goldens of diffusers and transformers, in float32; and what a batch may not change.
#include <cstring>

#include "cuda_support.h"
#include "diffusion/components.h"
#include "sana_golden.h"

namespace kinora::test {
namespace {

class CudaSana : public testing::TestWithParam<const char*> {};

TEST_P(CudaSana, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  Denoiser model(read_sana_config(golden.config), golden.weights, gpu_runtime());
  DenoiseInputs in = sana_inputs(golden, model.config());
  expect_close(model.predict(in), golden.channels_last("out.sample"), DType::f32, kModelTerms, GetParam());
  in.lengths = {};
  expect_close(model.predict(in), golden.channels_last("out.sample"), DType::f32, kModelTerms,
               GetParam() + std::string(" with a mask"));
}

TEST_P(CudaSana, Bfloat16IsNearFloat32) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  Denoiser model(read_sana_config(golden.config), golden.weights, gpu_runtime(DType::bf16));
  Tensor got = model.predict(sana_inputs(golden, model.config()));
  expect_close(got, golden.channels_last("out.sample"), DType::bf16, 64, GetParam());
}

// A picture's bits must not depend on what else is in the batch, nor on its place there.
TEST_P(CudaSana, BatchInvariant) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  Denoiser model(read_sana_config(golden.config), golden.weights, gpu_runtime(DType::bf16));
  DenoiseInputs all = sana_inputs(golden, model.config());
  Tensor together = model.predict(all);
  for (int64_t i = 0; i < all.latents.shape()[0]; ++i) {
    Tensor alone = model.predict(item_of(all, i)), same = together.rows(i, i + 1);
    EXPECT_EQ(std::memcmp(alone.raw(), same.raw(), alone.bytes()), 0) << GetParam() << ", item " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaSana,
                         testing::Values("sana_base", "sana_qk_norm", "sana_sprint", "sana_positions", "sana_patch2"));

class CudaDcAe : public testing::TestWithParam<const char*> {};

TEST_P(CudaDcAe, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  expect_dc_ae_golden(GetParam(), gpu_runtime());
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaDcAe,
                         testing::Values("dcae_published", "dcae_shuffle", "dcae_small", "dcae_lite", "dcae_tiled"));

class CudaGemma2 : public testing::TestWithParam<const char*> {};

TEST_P(CudaGemma2, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  expect_gemma2_golden(GetParam(), gpu_runtime());
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaGemma2, testing::Values("gemma2_softcap", "gemma2_plain"));

}  // namespace
}  // namespace kinora::test
