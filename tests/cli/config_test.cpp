// Configurations as the program takes them.
#include <nlohmann/json.hpp>
#include <sstream>

#include "cli/cli.h"
#include "io/image.h"
#include "io/settings.h"

namespace kinora::test {
namespace {

class CliConfig : public Cli {
 protected:
  nlohmann::json record(const std::string& picture) {
    return nlohmann::json::parse(read_record(temp_.path(picture)).json);
  }
};

TEST_F(CliConfig, DrawsAsTheFileSays) {
  temp_.write("base.yaml", "sampling: {steps: 1, guidance: 2.5, seed: 5}\nprompt: {text: a dog, negative: red}\n");
  temp_.write("my.yaml",
              "base: base.yaml\nprompt: {text: a cat}\noutput:\n  file: ${env:KINORA_TEST_NAME:-p}-{seed}.png\n"
              "profiles: {small: {size: {width: 128, height: 128}, sampling: {seed: 6}}}\n");
  Outcome o = run("generate --config my.yaml --profile small --set sampling.guidance=3 --seed 7");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out, "p-7.png\n");
  nlohmann::json r = record("p-7.png");
  EXPECT_EQ(r["prompt"], "a cat");
  EXPECT_EQ(r["negative_prompt"], "red");
  EXPECT_EQ(r["steps"], 1);
  EXPECT_EQ(r["guidance"], 3);
  EXPECT_EQ(r["width"], 128);
  // The same by flags alone: the same bytes.
  o = run("generate 'a cat' -n red --steps 1 -g 3 -W 128 -H 128 --seed 7 -o flags.png");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(text("flags.png"), text("p-7.png"));
  o = run("generate 'a bird' --config my.yaml -o bird.png", "KINORA_TEST_NAME=q");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(record("bird.png")["prompt"], "a bird");
  EXPECT_EQ(record("bird.png")["seed"], 5);
  ASSERT_EQ(run("generate '' --config my.yaml", "KINORA_TEST_NAME=q").status, 0);
  EXPECT_EQ(record("q-5.png")["prompt"], "");  // an empty prompt is a prompt
}

TEST_F(CliConfig, EveryCommandTakesOne) {
  temp_.write("my.yaml", "model: {name: " KINORA_SOURCE_DIR
                         "/models/kinora-mini}\ncompute: {threads: 1}\n"
                         "bench: {json: true, repeats: 1, component: vae.decode}\n");
  Outcome o = run("bench --config my.yaml");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(nlohmann::json::parse(o.out)["rows"].size(), 1u);
  EXPECT_EQ(run("inspect --config my.yaml").status, 0);
  EXPECT_EQ(run("tokenize apple --config my.yaml").status, 0);
  EXPECT_NE(run("tokenize apple --config my.yaml --set model.name=nowhere").status, 0);
  expect_error("eval '" KINORA_SOURCE_DIR "/models/kinora-mini' vae.decode x -o y --config my.yaml", 5,
               "cannot open x");
  expect_error("eval . vae.decode x -o y --config none.yaml", 5, "none.yaml");
}

// A preset's model is a name on the hub; in a folder that holds no such model the name reaches the loader.
TEST_F(CliConfig, PresetsReachTheLoader) {
  Outcome o = run("generate cat --config '" KINORA_SOURCE_DIR "/configs/models/sana-sprint-0.6b.yaml'",
                  "HF_HUB_OFFLINE=1 HF_HOME=empty");
  EXPECT_NE(o.status, 0);
  EXPECT_NE(o.err.find("Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers"), std::string::npos) << o.err;
}

TEST_F(CliConfig, WrongUse) {
  temp_.write("my.yaml", "sampling:\n  stpes: 3\n");
  temp_.write("good.yaml", "sampling: {steps: 1}\nprofiles: {laptop: {}}\n");
  expect_error("generate cat --config my.yaml", 3,
               "my.yaml:2:3: unknown key 'sampling.stpes'; did you mean 'sampling.steps'?");
  expect_error("generate cat --config none.yaml", 5, "none.yaml");
  expect_error("generate cat --config good.yaml --profile lap", 2, "no profile 'lap' in good.yaml");
  expect_error("generate cat --profile laptop", 2, "needs a --config");
  expect_error("generate cat --set sampling.steps=0", 2, "whole number from 1 to 1000, not '0'");
  expect_error("generate cat --set sampling.step=1", 2, "did you mean 'sampling.steps'?");
  expect_error("generate cat --set sampling.steps", 2, "KEY=VALUE");
  expect_error("generate cat --set bench.size=32", 2, "kinora generate does not use it (used by: bench)");
  expect_error("generate cat --prompt-file x", 2, "exclude one another");
  expect_error("config", 2, "subcommand");
  expect_error("config show --set sampling.steps=x", 2, "sampling.steps");
}

TEST_F(CliConfig, CheckSaysAllThatIsWrong) {
  temp_.write("my.yaml", "sampling:\n  stpes: 3\n  guidance: high\n");
  temp_.write("good.yaml", "sampling: {steps: 1}\n");
  Outcome o = run("config check good.yaml my.yaml");
  EXPECT_EQ(o.status, 3);
  EXPECT_EQ(o.out, "good.yaml: ok\n");
  EXPECT_EQ(o.err,
            "kinora: my.yaml:2:3: unknown key 'sampling.stpes'; did you mean 'sampling.steps'?\n"
            "kinora: my.yaml:3:13: sampling.guidance must be a number from 0 to 1000, not 'high'\n");
  EXPECT_EQ(run("config check good.yaml").status, 0);
}

TEST_F(CliConfig, ShowSaysWhereValuesComeFrom) {
  temp_.write("base.yaml", "sampling: {steps: 9}\n");
  temp_.write("my.yaml", "base: base.yaml\nprofiles: {p: {sampling: {count: 2}}}\n");
  temp_.write("later.yaml", "sampling: {batch: 3}\n");
  Outcome o = run("config show my.yaml later.yaml --profile p --set size.width=64");
  ASSERT_EQ(o.status, 0) << o.err;
  for (const char* line : {"  steps: 9                                # base.yaml:1:19\n",
                           "  count: 2                                # my.yaml:2:34 (profile p)\n",
                           "  batch: 3                                # later.yaml:1:19\n",
                           "  width: 64                               # --set\n",
                           "  strength: 0.6                           # default\n", "  # height: the model's\n"}) {
    EXPECT_NE(o.out.find(line), std::string::npos) << line << o.out;
  }
  EXPECT_EQ(run("config show --config my.yaml --config later.yaml --profile p --set size.width=64").out, o.out);
}

TEST_F(CliConfig, SchemaAndReference) {
  EXPECT_EQ(run("config schema").out, settings_schema());
  EXPECT_EQ(run("config schema --markdown").out, settings_reference());
}

// The table says which commands use a key; a command's help shows what it binds.
TEST_F(CliConfig, TheTableKnowsWhichCommandsUseAKey) {
  for (std::string command : {"generate", "inspect", "eval", "bench", "tokenize"}) {
    std::string help = run(command + " --help").out;
    EXPECT_NE(help.find("--config"), std::string::npos);
    for (const SettingDef& def : setting_table()) {
      std::istringstream names{std::string(def.commands)};
      bool used = false, bound = false;
      for (std::string name; names >> name;) used = used || name == command;
      for (const char* end : {", ", " (", "\n"})
        bound = bound || help.find(" " + std::string(def.doc) + end) != std::string::npos;
      EXPECT_EQ(used, bound) << command << " " << def.key;
    }
  }
}

}  // namespace
}  // namespace kinora::test
