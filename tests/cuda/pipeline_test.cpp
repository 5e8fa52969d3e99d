// kinora-mini drawn on the GPU: near the CPU's picture, the same bytes each time, whatever else is in the batch.
#include "diffusion/pipeline.h"

#include <cmath>

#include "cuda_support.h"
#include "golden.h"

namespace kinora::test {
namespace {

Request apple(std::vector<uint64_t> seeds) {
  Request request;
  request.prompt = "a red apple left of a yellow star on a blue background";
  request.seeds = std::move(seeds);
  return request;
}

Pipeline load(const std::string& device, const std::string& dtype, const std::string& model) {
  return Pipeline::load(source_folder() + model, {.device = device, .dtype = dtype, .threads = 2});
}

double psnr(const Image& a, const Image& b) {
  double total = 0;
  for (size_t i = 0; i < a.rgb.size(); ++i) {
    double error = static_cast<double>(a.rgb[i]) - b.rgb[i];
    total += error * error;
  }
  return 10 * std::log10(255.0 * 255.0 / std::max(total / static_cast<double>(a.rgb.size()), 1e-9));
}

class CudaPipeline : public testing::TestWithParam<const char*> {};

TEST_P(CudaPipeline, DrawsTheCpusPicture) {
  KINORA_NEEDS_GPU();
  Image cpu = load("cpu", "float32", GetParam()).generate(apple({3})).images[0];
  EXPECT_GT(psnr(load("cuda", "float32", GetParam()).generate(apple({3})).images[0], cpu), 50);
  EXPECT_GT(psnr(load("cuda", "bfloat16", GetParam()).generate(apple({3})).images[0], cpu), 40);
}

TEST_P(CudaPipeline, GivesTheSameBytesAloneInABatchAndAgain) {
  KINORA_NEEDS_GPU();
  Pipeline pipeline = load("cuda", "bfloat16", GetParam());
  std::vector<Image> together = pipeline.generate(apple({5, 6, 7})).images;
  for (uint64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(pipeline.generate(apple({5 + i})).images[0].rgb, together[i].rgb) << "seed " << 5 + i;
  }
  Pipeline again = load("cuda", "bfloat16", GetParam());
  EXPECT_EQ(again.generate(apple({5})).images[0].rgb, together[0].rgb);
}

TEST_P(CudaPipeline, ReportsEveryStepAndStops) {
  KINORA_NEEDS_GPU();
  std::atomic<bool> stop{false};
  Pipeline pipeline = Pipeline::load(source_folder() + GetParam(), {.device = "cuda", .threads = 2, .stop = &stop});
  std::vector<int64_t> steps;
  Request request = apple({1});
  request.on_step = [&](const StepReport& report) {
    steps.push_back(report.step);
    EXPECT_TRUE(report.latents->on_device());
  };
  Result result = pipeline.generate(request);
  ASSERT_EQ(static_cast<int64_t>(steps.size()), result.steps);
  for (size_t i = 0; i < steps.size(); ++i) EXPECT_EQ(steps[i], static_cast<int64_t>(i) + 1);
  request.on_step = [&](const StepReport&) { stop = true; };
  EXPECT_THROW(pipeline.generate(request), Error);
}

INSTANTIATE_TEST_SUITE_P(Models, CudaPipeline, testing::Values("/models/kinora-mini", "/tests/golden/tiny_sprint"),
                         [](const auto& param) { return std::string(param.index ? "sprint" : "mini"); });

TEST(CudaErrors, NameWhatWasNeeded) {
  KINORA_NEEDS_GPU();
  std::shared_ptr<Device> device = cuda::open_device();
  try {
    device->allocate(size_t{1} << 50);
    FAIL() << "a petabyte was there";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::resource);
    EXPECT_NE(std::string(error.what()).find("MiB more were needed"), std::string::npos) << error.what();
  }
  EXPECT_NO_THROW(device->allocate(1 << 20));  // the process goes on
  EXPECT_THROW(cuda::open_device(99), Error);
}

TEST(CudaErrors, SayWhatIsMissing) {
  std::string why = cuda::why_unavailable();
  if (why.empty()) GTEST_SKIP() << "a GPU is here";
  EXPECT_NE(why.find("--device cpu"), std::string::npos) << why;
  try {
    make_runtime("cuda", "auto", 1, nullptr);
    FAIL() << "a GPU appeared";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::resource);
  }
  EXPECT_EQ(make_runtime("auto", "auto", 1, nullptr).context.device, nullptr);
}

}  // namespace
}  // namespace kinora::test
