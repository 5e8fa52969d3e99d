// The program as a user meets it: statuses, messages, files.
#include "cli/cli.h"

#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "io/image.h"
#include "io/safetensors.h"
#include "support.h"

namespace kinora::test {
namespace {

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
  EXPECT_EQ(nlohmann::json::parse(record.json)["model"], "kinora-mini");
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

TEST_F(Cli, DraftsAreRefined) {
  std::string fox = "generate 'a fox' --steps 4 ";
  ASSERT_EQ(run(fox + "--from-resolution 128px --refine-strength 0.7 -o fox.jpg").status, 0) << text("err.txt");
  EXPECT_NE(text("err.txt").find("drawn small in "), std::string::npos);
  ASSERT_EQ(run("generate --from fox.jpg -o again.jpg").status, 0) << text("err.txt");
  EXPECT_EQ(text("again.jpg"), text("fox.jpg"));
  ASSERT_EQ(run(fox + "--scheduler euler -o direct.jpg").status, 0);
  ASSERT_EQ(run(fox + "--scheduler euler --from-resolution 128x96 --refine-strength 1 -o noise.jpg").status, 0);
  EXPECT_EQ(load_image(temp_.path("noise.jpg")).rgb,
            load_image(temp_.path("direct.jpg")).rgb);  // nothing is left of it
  expect_error(fox + "--from-resolution 512px", 2, "must be smaller");
  expect_error(fox + "--from-resolution 128x90", 2, "multiples of 16");
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
  expect_error("generate cat --threads -1", 2, "threads");
  expect_error("generate cat --tile 40", 2, "tile");
  expect_error("generate cat --count 2 -o same.png", 2, "{seed}");
  expect_error("generate cat --batch 65", 2, "batch");
  expect_error("generate cat -o picture.bmp", 2, "bmp");
  expect_error("generate cat --model nowhere", 5, "nowhere");
  expect_error("generate a yellow star", 2, "needs quotes around it; 'yellow' stands by itself");
  expect_error("generate a cat --paws 4", 2, "--paws");
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
  expect_error("generate cat --steps 1 --save-noise n.safetensors", 5, "n.safetensors", "ulimit -f 8;");
  expect_error("generate cat --steps 1 --preview p.png", 5, "p.png", "ulimit -f 8;");
  expect_error("generate cat --steps 1 -o /dev/full", 2, "/dev/full");
  if (geteuid() != 0) {
    std::filesystem::create_directory(temp_.path("locked"));
    std::filesystem::permissions(temp_.path("locked"),
                                 std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
    expect_error("generate cat --steps 1 -o locked/cat.png", 5, "locked");
    EXPECT_TRUE(text("err.txt").starts_with("kinora: "));  // before the work
  }
}

// Starts "kinora generate ARGUMENTS", its stderr a pipe or a terminal of `columns` columns.
struct Child {
  pid_t pid = -1;
  int err = -1;

  Child(const TempFolder& folder, std::vector<std::string> arguments, int columns = 0) {
    int ends[2] = {-1, -1};
    winsize size{24, static_cast<unsigned short>(columns), 0, 0};
    if (columns ? openpty(&ends[0], &ends[1], nullptr, nullptr, &size) : pipe(ends)) return;
    arguments.insert(arguments.begin(), {"kinora", "generate"});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid = fork();
    if (pid == 0) {
      int null = open("/dev/null", O_RDWR);
      dup2(null, STDIN_FILENO);
      dup2(null, STDOUT_FILENO);
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      if (chdir(folder.path().c_str()) == 0) execv(KINORA_BINARY_DIR "/kinora", argv.data());
      _exit(99);
    }
    close(ends[1]);
    err = ends[0];
  }
  ~Child() {
    if (err >= 0) close(err);
  }
  // What it has written when `word` comes, or all of it.
  std::string read_until(const std::string& word) {
    std::string text;
    char c;
    while (text.find(word) == std::string::npos && read(err, &c, 1) == 1) text += c;
    return text;
  }
  int wait() {
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
};

// Words that are written at the beginning of a stage; each of them takes longer than the signal.
TEST_F(Cli, InterruptStopsCleanlyAtEveryStage) {
  std::vector<std::string> slow{"a cat", "--steps", "1000", "--width", "512", "--height", "512", "-o", "cat.png"};
  std::vector<std::string> decode{"a cat", "--steps",  "1",   "--tile", "64",     "--width",
                                  "512",   "--height", "512", "-o",     "cat.png"};
  std::vector<std::pair<std::vector<std::string>, std::string>> stages{
      {slow, "encoding"}, {slow, "step 1/"}, {slow, "step 3/"}, {decode, "tile 1/"}, {decode, "tile 5/"}};
  for (const auto& [arguments, word] : stages) {
    Child child(temp_, arguments);
    std::string text = child.read_until(word);
    ASSERT_NE(text.find(word), std::string::npos) << text;
    kill(child.pid, SIGINT);
    text = child.read_until("no such word");
    EXPECT_EQ(child.wait(), 130) << word << ": " << text;
    EXPECT_TRUE(text.ends_with("kinora: stopped\n")) << word << ": " << text;
    EXPECT_TRUE(std::filesystem::is_empty(temp_.path())) << word;
  }
}

// Weights are mapped, so a file that shrinks under the program cannot be an exception; it is still a clean end.
TEST_F(Cli, AModelFileThatShrinksEndsCleanly) {
  std::filesystem::copy(KINORA_SOURCE_DIR "/models/kinora-mini", temp_.path("model"),
                        std::filesystem::copy_options::recursive);
  Child child(temp_, {"a cat", "--model", "model", "--steps", "1000", "--preview", "p.png", "-o", "cat.png"});
  std::string text = child.read_until("step 1/");
  std::filesystem::resize_file(temp_.path("model/vae/diffusion_pytorch_model.safetensors"), 4096);
  text += child.read_until("no such word");
  EXPECT_EQ(child.wait(), 5) << text;
  EXPECT_NE(text.find("kinora: a file that was being read has become shorter"), std::string::npos) << text;
  EXPECT_FALSE(std::filesystem::exists(temp_.path("cat.png")));
}

TEST_F(Cli, ProgressFitsTheTerminal) {
  for (int columns : {200, 60, 40, 20, 5, 2}) {
    Child child(temp_, {"a cat", "--steps", "2", "--width", "64", "--height", "64", "--count", "2", "-o", "{seed}.png"},
                columns);
    if (child.pid < 0) GTEST_SKIP() << "this system has no pseudo-terminals";
    std::string text = child.read_until("no such word"), line;
    EXPECT_EQ(child.wait(), 0) << text;
    int widest = 0, width = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\r' || text[i] == '\n') {
        widest = std::max(widest, width);
        width = 0;
      } else if (text.compare(i, 3, "\x1b[K") == 0) {
        i += 2;
      } else {
        width += (text[i] & 0xc0) != 0x80;  // characters, not bytes
      }
    }
    EXPECT_LT(widest, columns) << text;
    if (columns >= 60) {
      EXPECT_NE(text.find("█"), std::string::npos) << text;
    }
    if (columns >= 5) {
      EXPECT_NE(text.find("2/2"), std::string::npos) << text;
    }
  }
}

TEST_F(Cli, QuietAndVerbose) {
  EXPECT_EQ(run("generate cat --steps 1 -q -o quiet.jpg").err, "");
  std::string text = run("generate cat --steps 1 -v -o verbose.jpg").err;
  EXPECT_NE(text.find("MiB of memory"), std::string::npos) << text;
  text = run("generate cat --steps 1 --tile 128 -o tiles.jpg").err;
  EXPECT_NE(text.find("decoding tile 9/9\n"), std::string::npos) << text;
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
      if (entry.path().extension() == ".png") {
        EXPECT_EQ(load_image(entry.path()).width, 256);
      }
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
  auto expect_refused = [&](const std::string& component, const std::vector<std::pair<std::string, Tensor>>& tensors,
                            const std::string& word) {
    write_safetensors(temp_.path("bad.safetensors"), tensors);
    expect_error("eval '" + model + "' " + component + " bad.safetensors -o y.safetensors", 3, word);
  };
  expect_refused("vae.decode", {{"latent", Tensor::zeros({1, 31, 4, 4})}}, "[1, 31, 4, 4]");
  expect_refused("vae.decode", {{"latent", Tensor::zeros({1, 32, 4})}}, "[1, 32, 4]");
  expect_refused("vae.encode", {{"sample", Tensor::zeros({1, 3, 24, 64})}}, "multiples of 16");
  expect_refused("vae.encode", {{"sample", Tensor::zeros({1, 4, 64, 64})}}, "[1, 4, 64, 64]");
  expect_refused("vae.decode", {{"latent", Tensor::zeros({0, 32, 4, 4})}}, "[0, 32, 4, 4]");
  expect_refused("transformer",
                 {{"hidden_states", Tensor::zeros({1, 32, 4, 4})},
                  {"encoder_hidden_states", Tensor::zeros({1, 8, 7})},
                  {"timestep", Tensor::zeros({1})}},
                 "[1, 8, 7]");
  expect_refused("transformer",
                 {{"hidden_states", Tensor::zeros({2, 32, 4, 4})},
                  {"encoder_hidden_states", Tensor::zeros({2, 8, 192})},
                  {"timestep", Tensor::zeros({3})}},
                 "timestep");
  expect_refused("text_encoder", {{"input_ids", Tensor::from({1, 2}, std::vector<int32_t>{1, 1 << 30})}}, "vocabulary");
  expect_refused("text_encoder", {{"input_ids", Tensor::from({1, 2}, std::vector<int64_t>{1, int64_t{1} << 33})}},
                 "vocabulary");
  expect_refused("text_encoder", {{"input_ids", Tensor::zeros({1, 0}, DType::i32)}}, "[1, 0]");
  expect_error("eval '" + model + "' unet in.safetensors -o y.safetensors", 2, "unet");
  o = run("inspect");
  EXPECT_EQ(o.status, 0);
  EXPECT_NE(o.out.find("transformer"), std::string::npos);
  EXPECT_NE(o.out.find("attention on cpu (--attention auto): text_encoder flash 4; transformer flash"),
            std::string::npos)
      << o.out;
  o = run("inspect --attention math");
  EXPECT_NE(o.out.find("(--attention math): text_encoder math 4; transformer linear"), std::string::npos) << o.out;
  EXPECT_EQ(run("inspect --attention fast").status, 2);
  o = run("inspect --graph transformer");
  EXPECT_NE(o.out.find("linear_attention"), std::string::npos) << o.out.substr(0, 2000);
  o = run("tokenize 'a red apple'");
  EXPECT_EQ(o.status, 0);
  EXPECT_GE(std::count(o.out.begin(), o.out.end(), '\n'), 4);
  o = run("bench --repeats 1 --json");
  EXPECT_EQ(nlohmann::json::parse(o.out)["rows"].size(), 4u);
}

// A golden of the video transformer as a model folder: weights under a published name, the config beside them.
class CliMmdit : public Cli {
 protected:
  CliMmdit() {
    auto golden = SafetensorsFile::open(KINORA_SOURCE_DIR "/tests/golden/mmdit_flux.safetensors");
    std::vector<std::pair<std::string, Tensor>> weights;
    for (const SafetensorsEntry& entry : golden.header().entries) {
      if (entry.name.starts_with("w.")) weights.emplace_back(entry.name.substr(2), golden.tensor(entry));
      if (entry.name.starts_with("in.")) inputs_[entry.name.substr(3)] = golden.tensor(entry).clone();
    }
    expected_ = golden.tensor("out.velocity").clone();
    std::filesystem::create_directory(temp_.path("model"));
    write_safetensors(temp_.path("model/flux1-dev.safetensors"), weights);
    temp_.write("model/flux1-dev.json", golden.header().metadata.at("config"));
    write_inputs();
  }
  void write_inputs() { write_safetensors(temp_.path("in.safetensors"), {inputs_.begin(), inputs_.end()}); }
  std::map<std::string, Tensor> inputs_;
  Tensor expected_;
};

TEST_F(CliMmdit, EvaluatesTheVideoTransformer) {
  Outcome o = run("eval model flux in.safetensors -o out.safetensors");
  ASSERT_EQ(o.status, 0) << o.err;
  Tensor velocity = SafetensorsFile::open(temp_.path("out.safetensors")).tensor("velocity").clone();
  expect_close(velocity, expected_, DType::f32, 1 << 14, "velocity");
  // The same from a path to the file itself; other types of activations.
  ASSERT_EQ(run("eval model/flux1-dev.safetensors mmdit in.safetensors -o again.safetensors").status, 0);
  EXPECT_EQ(text("again.safetensors"), text("out.safetensors"));
  ASSERT_EQ(run("eval model flux in.safetensors -o bf16.safetensors --dtype bfloat16").status, 0);
  EXPECT_NE(text("bf16.safetensors"), text("out.safetensors"));
}

TEST_F(CliMmdit, TimesRunsAndShowsWhereTimeGoes) {
  Outcome o = run("eval model flux in.safetensors -o out.safetensors --repeats 3 --by-op --attention math");
  ASSERT_EQ(o.status, 0) << o.err;
  auto report = nlohmann::json::parse(o.out.substr(0, o.out.find('\n')));
  EXPECT_GT(report["median_s"].get<double>(), 0);
  EXPECT_LE(report["best_s"].get<double>(), report["median_s"].get<double>());
  EXPECT_TRUE(report["attention"].get<std::string>().starts_with("math ")) << o.out;
  EXPECT_NE(o.out.find("kinds of steps"), std::string::npos);
  EXPECT_NE(o.out.find("layer_norm"), std::string::npos);
}

TEST_F(Cli, InspectsTheTransformerOfFilms) {
  auto golden = SafetensorsFile::open(KINORA_SOURCE_DIR "/tests/golden/mmdit_opensora.safetensors");
  std::vector<std::pair<std::string, Tensor>> weights;
  for (const SafetensorsEntry& entry : golden.header().entries) {
    if (entry.name.starts_with("w.")) weights.emplace_back(entry.name.substr(2), golden.tensor(entry));
  }
  std::filesystem::create_directory(temp_.path("film"));
  write_safetensors(temp_.path("film/Open_Sora_v2.safetensors"), weights);
  temp_.write("film/Open_Sora_v2.json", golden.header().metadata.at("config"));
  Outcome o = run("inspect film");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("attention on cpu (--attention auto): transformer flash"), std::string::npos) << o.out;
  o = run("inspect film --graph transformer");
  EXPECT_NE(o.out.find("= attention("), std::string::npos) << o.out.substr(0, 2000);
}

TEST_F(CliMmdit, NamesWhatIsWrongWithTensorsAndFolders) {
  expect_error("eval . flux in.safetensors -o y.safetensors", 5, "flux1-dev.safetensors");
  expect_error("eval model mmdit in.safetensors -o y.safetensors", 5, "Open_Sora_v2.safetensors");
  expect_error("eval in.safetensors mmdit in.safetensors -o y.safetensors", 4, "'img_in.weight' is missing");
  expect_error("eval model flux model/flux1-dev.safetensors -o y.safetensors", 4, "img");
  expect_error("eval model flux in.safetensors -o y.safetensors --dtype int8", 2, "int8");
  Tensor ids = inputs_["img_ids"].clone(), vec = inputs_["y_vec"];
  inputs_["img_ids"].data<float>()[4] += 1;
  write_inputs();
  expect_error("eval model flux in.safetensors -o y.safetensors", 3, "one grid");
  inputs_["img_ids"] = ids;
  inputs_["y_vec"] = vec.rows(0, 1);
  write_inputs();
  expect_error("eval model flux in.safetensors -o y.safetensors", 3, "'y_vec' must have shape [2, 12]");
  temp_.write("model/flux1-dev.json", R"({"axes_dim": [4, 4, 4]})");
  expect_error("eval model flux in.safetensors -o y.safetensors", 4, "axes_dim adds up to 12");
  temp_.write("model/flux1-dev.json", R"({"axes_dim": [4, 6, 6], "depth": 3})");
  expect_error("eval model flux in.safetensors -o y.safetensors", 4, "double_blocks.1.img_mod.lin.weight");
}

}  // namespace
}  // namespace kinora::test
