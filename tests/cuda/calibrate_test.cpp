// Statistics of what products read, gathered on the GPU: near the CPU's, and the same each time.
#include "diffusion/calibrate.h"

#include <cmath>

#include "cuda_support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

// Of a layer of the text encoder and of one of the transformer that reads captions.
std::vector<std::vector<float>> moments(const std::string& folder, const std::string& device) {
  CalibrationOptions o;
  o.folder = folder;
  o.runtime = make_runtime(device, "float32", 2, nullptr);
  for (const char* prompt : {"a cat", "two dogs on a red sofa"}) {
    o.pictures.emplace_back();
    o.pictures.back().prompt = prompt;
  }
  Calibration calibration(std::move(o));
  calibration.draw();
  std::vector<std::vector<float>> all;
  for (auto [component, weight] : {std::pair("text_encoder", "layers.0.mlp.down_proj.weight"),
                                   std::pair("transformer", "transformer_blocks.0.attn2.to_k.weight"),
                                   std::pair("transformer", "transformer_blocks.0.ff.conv_point.weight")}) {
    calibration.begin({component, folder + "/" + component, ""}, {weight});
    std::shared_ptr<const InputMoments> inputs = calibration.of(weight);
    all.emplace_back();
    if (inputs) all.back().assign(inputs->moments().values<float>().begin(), inputs->moments().values<float>().end());
  }
  return all;
}

TEST(CudaCalibration, MomentsAreNearTheCpus) {
  KINORA_NEEDS_GPU();
  TempFolder temp;
  copy_tiny_sprint(temp.path("model"));
  std::vector<std::vector<float>> cpu = moments(temp.path("model"), "cpu"), gpu = moments(temp.path("model"), "cuda");
  EXPECT_EQ(moments(temp.path("model"), "cuda"), gpu);
  for (size_t i = 0; i < cpu.size(); ++i) {
    ASSERT_FALSE(cpu[i].empty()) << i;
    ASSERT_EQ(gpu[i].size(), cpu[i].size());
    double error = 0, total = 0;
    for (size_t j = 0; j < cpu[i].size(); ++j) {
      error += std::pow(double{gpu[i][j]} - cpu[i][j], 2);
      total += std::pow(double{cpu[i][j]}, 2);
    }
    EXPECT_LT(std::sqrt(error / total), 0.003) << i;  // as far as 50 dB of the pictures let the steps part
  }
}

}  // namespace
}  // namespace kinora::test
