// `kinora eval` and `kinora tokenize` with the folders of text encoders and tokenizers.
#include <sys/wait.h>

#include <cstdlib>

#include "golden.h"
#include "io/file.h"
#include "support.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

class TextEncoderCli : public testing::Test {
 protected:
  // The exit status of "kinora ARGUMENTS"; its output lies in out.txt and err.txt.
  int run(const std::string& arguments) {
    std::string command =
        "cd '" + temp_.path() + "' && '" KINORA_BINARY_DIR "/kinora' " + arguments + " >out.txt 2>err.txt </dev/null";
    int status = std::system(command.c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  std::string text(const std::string& name) { return read_file(temp_.path(name), size_t{1} << 20); }

  // A folder as published, from a golden file; in.safetensors holds the golden's ids as I64.
  void write_folder(const Golden& golden, const std::string& config) {
    std::filesystem::create_directory(temp_.path("model"));
    std::vector<std::pair<std::string, Tensor>> tensors;
    for (const std::string& name : golden.weights.names()) tensors.emplace_back(name, *golden.weights.find(name));
    write_safetensors(temp_.path("model/model.safetensors"), tensors);
    temp_.write("model/config.json", config);
    Tensor ids = golden.tensor("in.ids");
    std::vector<int64_t> wide(ids.values<int32_t>().begin(), ids.values<int32_t>().end());
    write_safetensors(temp_.path("in.safetensors"), {{"input_ids", Tensor::from(ids.shape(), wide)}});
  }
  TempFolder temp_;
};

TEST_F(TextEncoderCli, EvalRunsT5) {
  Golden golden("t5_gated");
  std::string config = golden.config.dump();
  write_folder(golden, "{\"model_type\": \"t5\"," + config.substr(config.find('{') + 1));
  ASSERT_EQ(run("eval model text_encoder in.safetensors -o out.safetensors --device cpu"), 0) << text("err.txt");
  Tensor hidden = SafetensorsFile::open(temp_.path("out.safetensors")).tensor("last_hidden_state");
  expect_close(hidden, golden.tensor("out.hidden"), DType::f32, 1 << 14, "eval t5");
  EXPECT_EQ(run("eval model transformer in.safetensors -o y.safetensors"), 2);
  EXPECT_NE(text("err.txt").find("text_encoder"), std::string::npos);
}

TEST_F(TextEncoderCli, EvalRunsClip) {
  Golden golden("clip_quick_gelu");
  write_folder(golden, "{\"model_type\": \"clip\", \"text_config\": " + golden.config.dump() + "}");
  ASSERT_EQ(run("eval model text_encoder in.safetensors -o out.safetensors --device cpu"), 0) << text("err.txt");
  Tensor pooled = SafetensorsFile::open(temp_.path("out.safetensors")).tensor("pooler_output");
  expect_close(pooled, golden.tensor("out.pooled"), DType::f32, 1 << 14, "eval clip");
  write_safetensors(temp_.path("in.safetensors"), {{"input_ids", Tensor::from({1, 1}, std::vector<int64_t>{-3})}});
  EXPECT_EQ(run("eval model text_encoder in.safetensors -o y.safetensors"), 3);
  EXPECT_NE(text("err.txt").find("-3"), std::string::npos);
}

TEST_F(TextEncoderCli, TokenizeReadsATokenizersOwnFolder) {
  std::string folder = source_folder() + "/tests/golden/t5_tokenizer";
  ASSERT_EQ(run("tokenize 'a cat' --length 5 --model '" + folder + "'"), 0) << text("err.txt");
  std::string out = text("out.txt");
  EXPECT_NE(out.find("\t▁cat\n1\t</s>\n"), std::string::npos) << out;
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 5);
  EXPECT_TRUE(out.ends_with("0\t<pad>\n")) << out;
}

}  // namespace
}  // namespace kinora::test
