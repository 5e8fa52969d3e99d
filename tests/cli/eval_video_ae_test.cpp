// kinora eval of the film autoencoders, as a user runs it.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>

#include "golden.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

class EvalVideoAe : public testing::Test {
 protected:
  // Writes the golden's weights as a folder in diffusers' layout, and some of its tensors as the input.
  void prepare(const std::string& golden, std::vector<std::pair<std::string, std::string>> inputs) {
    auto file = SafetensorsFile::open(source_folder() + "/tests/golden/" + golden + ".safetensors");
    std::vector<std::pair<std::string, Tensor>> weights, tensors;
    for (const SafetensorsEntry& entry : file.header().entries) {
      if (entry.name.starts_with("w.")) weights.emplace_back(entry.name.substr(2), file.tensor(entry));
    }
    std::filesystem::create_directories(temp_.path("model/vae"));
    write_safetensors(temp_.path("model/vae/diffusion_pytorch_model.safetensors"), weights);
    temp_.write("model/vae/config.json", file.header().metadata.at("config"));
    for (const auto& [from, to] : inputs) tensors.emplace_back(to, file.tensor(from));
    write_safetensors(temp_.path("in.safetensors"), tensors);
  }
  std::pair<int, std::string> run(const std::string& arguments) {
    std::string command = "cd '" + temp_.path() + "' && '" KINORA_BINARY_DIR "/kinora' eval " + arguments +
                          " -o out.safetensors 2>err.txt </dev/null";
    int status = std::system(command.c_str());
    return {WEXITSTATUS(status), read_file(temp_.path("err.txt"), 1 << 20)};
  }
  Tensor output(const std::string& name) { return SafetensorsFile::open(temp_.path("out.safetensors")).tensor(name); }
  TempFolder temp_;
};

TEST_F(EvalVideoAe, EncodesAndDecodesFilms) {
  auto golden = SafetensorsFile::open(source_folder() + "/tests/golden/vae3d.safetensors");
  prepare("vae3d", {{"in.film", "sample"}, {"in.noise", "noise"}, {"in.latents", "latent"}});
  auto [status, err] = run("model vae3d.encode in.safetensors");
  ASSERT_EQ(status, 0) << err;
  expect_close(output("latent"), golden.tensor("out.sampled"), DType::f32, kModelTerms, "encode");
  std::tie(status, err) = run("model vae3d.decode in.safetensors --tile-size 0");
  ASSERT_EQ(status, 0) << err;
  expect_close(output("sample"), golden.tensor("out.film"), DType::f32, kModelTerms, "decode");
}

TEST_F(EvalVideoAe, SaysWhatIsWrong) {
  prepare("vae3d", {{"in.film", "latent"}});
  auto [status, err] = run("model vae3d.encode in.safetensors");
  EXPECT_EQ(status, 4) << err;
  EXPECT_NE(err.find("sample"), std::string::npos) << err;
  std::tie(status, err) = run("model vae3d.decode in.safetensors");
  EXPECT_EQ(status, 3) << err;
  EXPECT_NE(err.find("do not fit this model"), std::string::npos) << err;
  std::tie(status, err) = run("model flux_ae.decode in.safetensors");
  EXPECT_EQ(status, 4) << err;
  EXPECT_NE(err.find("flux1-dev-ae.safetensors"), std::string::npos) << err;
}

}  // namespace
}  // namespace kinora::test
