// The video transformer against Open-Sora's code and diffusers': tests/golden/make_mmdit.py made the files.
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

}  // namespace
}  // namespace kinora::test
