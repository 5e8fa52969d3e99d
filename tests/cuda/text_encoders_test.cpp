// T5 and CLIP on the GPU against the goldens of transformers.
#include "diffusion/text_encoders.h"

#include "cuda_support.h"
#include "golden.h"

namespace kinora::test {
namespace {

class CudaT5 : public testing::TestWithParam<const char*> {};

TEST_P(CudaT5, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  T5Encoder model(read_t5_config(golden.config), golden.weights, gpu_runtime());
  expect_close(model.encode(golden.tensor("in.ids")), golden.tensor("out.hidden"), DType::f32, kModelTerms, GetParam());
}

TEST_P(CudaT5, HalfPrecisionIsNearFloat32) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  for (DType dtype : {DType::bf16, DType::f16}) {
    T5Encoder model(read_t5_config(golden.config), golden.weights, gpu_runtime(dtype));
    expect_close(model.encode(golden.tensor("in.ids")), golden.tensor("out.hidden"), dtype, 1 << 10, GetParam());
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaT5, testing::Values("t5_gated", "t5_relu", "t5_gated_silu", "t5_gelu"));

class CudaClip : public testing::TestWithParam<const char*> {};

TEST_P(CudaClip, EqualsTheGolden) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  ClipTextEncoder model(read_clip_text_config(golden.config), golden.weights, gpu_runtime());
  ClipTextEncoder::Output out = model.encode(golden.tensor("in.ids"));
  expect_close(out.hidden, golden.tensor("out.hidden"), DType::f32, kModelTerms, GetParam());
  expect_close(out.pooled, golden.tensor("out.pooled"), DType::f32, kModelTerms, GetParam());
}

TEST_P(CudaClip, HalfPrecisionIsNearFloat32) {
  KINORA_NEEDS_GPU();
  Golden golden(GetParam());
  for (DType dtype : {DType::bf16, DType::f16}) {
    ClipTextEncoder model(read_clip_text_config(golden.config), golden.weights, gpu_runtime(dtype));
    expect_close(model.encode(golden.tensor("in.ids")).hidden, golden.tensor("out.hidden"), dtype, 1 << 10, GetParam());
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaClip, testing::Values("clip_quick_gelu", "clip_gelu"));

}  // namespace
}  // namespace kinora::test
