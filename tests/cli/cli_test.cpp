// The program as a user meets it: statuses, messages, files.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "io/file.h"
#include "io/image.h"
#include "io/safetensors.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

struct Outcome {
  int status;
  std::string out, err;
};

class Cli : public testing::Test {
 protected:
  // Runs "kinora ARGUMENTS" by way of the shell in the temporary folder; `before` may set limits.
  Outcome run(const std::string& arguments, const std::string& before = "") {
    std::string command = "cd '" + temp_.path() + "' && " + before + " '" KINORA_BINARY_DIR "/kinora' " + arguments +
                          " >out.txt 2>err.txt </dev/null";
    int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), text("out.txt"), text("err.txt")};
  }
  std::string text(const std::string& name) { return read_file(temp_.path(name), size_t{64} << 20); }
  void expect_error(const std::string& arguments, int status, const std::string& word, const std::string& before = "") {
    Outcome o = run(arguments, before);
    EXPECT_EQ(o.status, status) << arguments << ": " << o.err;
    size_t last = o.err.rfind("kinora: ");  // lines of progress may come before it
    ASSERT_NE(last, std::string::npos) << o.err;
    EXPECT_TRUE(last == 0 || (o.err.starts_with("step ") && o.err[last - 1] == '\n')) << o.err;
    EXPECT_EQ(o.err.find('\n', last), o.err.size() - 1) << o.err;
    EXPECT_NE(o.err.find(word, last), std::string::npos) << o.err;
    for (const auto& entry : std::filesystem::directory_iterator(temp_.path())) {
      std::string name = entry.path().filename();
      EXPECT_TRUE(!name.ends_with(".png") && !name.ends_with(".tmp")) << arguments << " left " << name;
    }
  }
  TempFolder temp_;
};

TEST_F(Cli, DrawsAndMakesTheSameBytesAgain) {
  Outcome o =
      run("generate 'a \"red\" apple, naïve' --steps 2 --seed 7 -n 'blue' --guidance 2.5 -o '{seed}-{index}.png'");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "7-0.png\n");
  EXPECT_NE(o.err.find("step 2/2"), std::string::npos);
  std::string first = text("7-0.png");
  ImageRecord record = read_record(temp_.path("7-0.png"));
  EXPECT_NE(record.parameters.find("Negative prompt: blue\nSteps: 2, Sampler: dpm++, CFG scale: 2.5, Seed: 7"),
            std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(record.json)["prompt"], "a \"red\" apple, naïve");
  o = run("generate --from 7-0.png -o again.png --threads 1");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(text("again.png"), first);
}

TEST_F(Cli, EveryFormatCanBeMadeAgain) {
  for (std::string format : {"jpg", "webp"}) {
    ASSERT_EQ(run("generate cat --steps 1 -o one." + format).status, 0);
    ASSERT_EQ(run("generate --from one." + format + " -o two." + format).status, 0);
    EXPECT_EQ(text("one." + format), text("two." + format));
  }
}

TEST_F(Cli, BatchesCountAndPromptFiles) {
  temp_.write("prompts.txt", "a cat\n\n  a dog \n");
  Outcome o = run("generate --prompt-file prompts.txt --count 3 --batch 2 --seed 10 --steps 1 -o '{index}.png'");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "0.png\n1.png\n2.png\n3.png\n4.png\n5.png\n");
  ASSERT_EQ(run("generate 'a dog' --seed 12 --steps 1 -o one.png").status, 0);
  EXPECT_EQ(load_image(temp_.path("5.png")).rgb, load_image(temp_.path("one.png")).rgb);
}

TEST_F(Cli, NoiseAndPreviewFiles) {
  ASSERT_EQ(run("generate cat --steps 1 --save-noise n.safetensors --preview p.png -o a.png").status, 0);
  EXPECT_EQ(SafetensorsFile::open(temp_.path("n.safetensors")).tensor("latents").shape(), (Shape{1, 32, 16, 16}));
  EXPECT_EQ(load_image(temp_.path("p.png")).width, 256);
  ASSERT_EQ(run("generate cat --steps 1 --seed 99 --noise n.safetensors -o b.png").status, 0);
  EXPECT_EQ(load_image(temp_.path("a.png")).rgb, load_image(temp_.path("b.png")).rgb);
  std::filesystem::remove(temp_.path("a.png"));
  std::filesystem::remove(temp_.path("b.png"));
  std::filesystem::remove(temp_.path("p.png"));
  expect_error("generate cat --width 128 --noise n.safetensors -o c.png", 3, "needs [1, 32, 16, 8]");
}

TEST_F(Cli, ImageToImage) {
  ASSERT_EQ(run("generate cat --steps 1 -o start.jpg").status, 0);
  ASSERT_EQ(run("generate dog --steps 4 --init-image start.jpg --strength 0.5 -o end.jpg").status, 0);
  expect_error("generate dog --init-image none.jpg", 5, "none.jpg");
  expect_error("generate dog --init-image err.txt", 3, "err.txt");
  expect_error("generate dog --init-image start.jpg --strength 1.5", 2, "strength");
}

TEST_F(Cli, WrongUse) {
  expect_error("", 2, "subcommand is required");
  expect_error("paint", 2, "paint");
  expect_error("generate cat --width 0", 2, "width");
  expect_error("generate cat --width 31", 2, "31");
  expect_error("generate cat --width 100000", 2, "100000");
  expect_error("generate cat --height 40", 2, "multiples of 16");
  expect_error("generate cat --steps 0", 2, "steps");
  expect_error("generate cat --steps many", 2, "steps");
  expect_error("generate cat --seed -1", 2, "seed");
  expect_error("generate cat --guidance nan", 2, "guidance");
  expect_error("generate cat --scheduler heun", 2, "heun");
  expect_error("generate cat --dtype int3", 2, "int3");
  expect_error("generate cat --count 2 -o same.png", 2, "{seed}");
  expect_error("generate cat --batch 65", 2, "batch");
  expect_error("generate cat -o picture.bmp", 2, "bmp");
  expect_error("generate cat --model nowhere", 5, "nowhere");
  expect_error("generate cat --model .", 5, "model_index.json");
  expect_error("generate --prompt-file nowhere.txt", 5, "nowhere.txt");
  expect_error("generate --from out.txt", 3, "out.txt");
  expect_error("eval . transformer x.safetensors -o y.safetensors", 5, "model_index.json");
}

TEST_F(Cli, OddPrompts) {
  EXPECT_EQ(run("generate '' --steps 1 -o empty.jpg").status, 0);
  expect_error("generate \"$(printf 'caf\\303')\"", 3, "UTF-8");
  temp_.write("long.txt", std::string(1 << 20, 'a') + " red apple");
  EXPECT_EQ(run("generate --prompt-file long.txt --steps 1 -o long.jpg").status, 0);
  temp_.write("zero.txt", std::string("a\0cat", 5));
  EXPECT_EQ(run("generate --prompt-file zero.txt --steps 1 -o zero.jpg").status, 0);
}

TEST_F(Cli, OutputThatCannotBeWritten) {
  expect_error("generate cat --steps 1 -o nowhere/cat.png", 5, "nowhere");
  expect_error("generate cat --steps 1 -o /proc/cat.png", 5, "/proc/cat.png");
  expect_error("generate cat --steps 1", 5, "kinora-0.png", "ulimit -f 8;");  // a full disk, as far as the program sees
  if (geteuid() != 0) {
    std::filesystem::create_directory(temp_.path("locked"));
    std::filesystem::permissions(temp_.path("locked"),
                                 std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
    expect_error("generate cat --steps 1 -o locked/cat.png", 5, "locked");
  }
}

TEST_F(Cli, InterruptStopsCleanly) {
  Outcome o = run("generate cat --steps 1000 -o cat.png", "timeout --preserve-status -s INT 2");
  EXPECT_EQ(o.status, 130) << o.err;
  EXPECT_FALSE(std::filesystem::exists(temp_.path("cat.png")));
}

// A handler would write its frame where the stack pointer is, which oneDNN's generated code moves into its data.
TEST_F(Cli, InterruptsRunNoSignalHandler) {
  temp_.write("script.sh", "'" KINORA_BINARY_DIR
                           "/kinora' generate cat --steps 1000 >out.txt 2>err.txt </dev/null & p=$!\n"
                           "until grep -q 'step 1/' err.txt; do sleep 0.05; done\n"
                           "sed -n 's/^SigCgt:[[:space:]]*//p' /proc/$p/status >caught.txt\n"
                           "kill -INT $p; wait $p\n");
  int status = std::system(("cd '" + temp_.path() + "' && timeout 60 sh script.sh").c_str());
  EXPECT_EQ(WEXITSTATUS(status), 130) << text("err.txt");
  uint64_t caught = std::stoull(text("caught.txt"), nullptr, 16);
  EXPECT_EQ(caught & (uint64_t{1} << (SIGINT - 1) | uint64_t{1} << (SIGTERM - 1)), 0u) << text("caught.txt");
}

TEST_F(Cli, KilledWhileWorkingLeavesNoBrokenPicture) {
  for (const char* seconds : {"0.3", "0.6", "0.8", "1.0"}) {
    run("generate cat --steps 1 --count 50 -o '{index}.png'", std::string("timeout -s KILL ") + seconds);
    for (const auto& entry : std::filesystem::directory_iterator(temp_.path())) {
      if (entry.path().extension() != ".png") continue;
      EXPECT_EQ(load_image(entry.path()).width, 256);
    }
  }
}

TEST_F(Cli, EvalInspectAndTokenize) {
  std::string model = KINORA_SOURCE_DIR "/models/kinora-mini";
  Tensor latents = Tensor::zeros({1, 32, 4, 6});
  write_safetensors(temp_.path("in.safetensors"), {{"latent", latents}});
  Outcome o = run("eval '" + model + "' vae.decode in.safetensors -o out.safetensors");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(SafetensorsFile::open(temp_.path("out.safetensors")).tensor("sample").shape(), (Shape{1, 3, 64, 96}));
  expect_error("eval '" + model + "' transformer in.safetensors -o y.safetensors", 4, "hidden_states");
  expect_error("eval '" + model + "' unet in.safetensors -o y.safetensors", 2, "unet");
  o = run("inspect");
  EXPECT_EQ(o.status, 0);
  EXPECT_NE(o.out.find("transformer"), std::string::npos);
  o = run("inspect --graph transformer");
  EXPECT_NE(o.out.find("linear_attention"), std::string::npos) << o.out.substr(0, 2000);
  o = run("tokenize 'a red apple'");
  EXPECT_EQ(o.status, 0);
  EXPECT_GE(std::count(o.out.begin(), o.out.end(), '\n'), 4);
  o = run("bench --repeats 1 --json");
  EXPECT_EQ(nlohmann::json::parse(o.out)["rows"].size(), 4u);
}

}  // namespace
}  // namespace kinora::test
