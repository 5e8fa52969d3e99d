#include "io/settings.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <set>

#include "core/quantize.h"
#include "io/file.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

namespace fs = std::filesystem;

const std::string kLower = "abcdefghijklmnopqrstuvwxyz", kUpperDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

// Two names of these characters, neither empty, with one separator between.
bool two_names(const std::string& text, char separator, const std::string& first, const std::string& second) {
  size_t at = text.find(separator);
  if (at == std::string::npos || at == 0 || at + 1 == text.size()) return false;
  return text.find_first_not_of(first) == at && text.find_first_not_of(second, at + 1) == std::string::npos;
}

class SettingsFiles : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    fs::create_directories(fs::path(temp_.path(name)).parent_path());
    return temp_.write(name, text);
  }
  Settings resolve(const std::string& text, SettingsRequest request = {}) {
    request.files = {write("my.yaml", text)};
    return resolve_settings(request);
  }
  // Expects an error whose message, with the folder left out, is `message`.
  void expect_error(const std::string& text, const std::string& message, ErrorKind kind = ErrorKind::input,
                    SettingsRequest request = {}) {
    try {
      resolve(text, request);
      ADD_FAILURE() << "accepted: " << text;
    } catch (const Error& error) {
      std::string got = error.what();
      for (size_t at; (at = got.find(temp_.path())) != std::string::npos;) got.erase(at, temp_.path().size());
      EXPECT_EQ(got, message) << text;
      EXPECT_EQ(error.kind(), kind) << got;
    }
  }
  std::string source(const Settings& settings, const std::string& key) {
    std::string name = settings.find(key)->source.str();
    return name.starts_with(temp_.path()) ? name.substr(temp_.path().size()) : name;
  }
  void set_variable(const char* name, const char* value) { setenv(name, value, 1); }
  ~SettingsFiles() override { unsetenv("KINORA_TEST_VALUE"); }

  TempFolder temp_;
};

TEST_F(SettingsFiles, TypesAndDefaults) {
  Settings s = resolve(
      "model: {name: no, variant: 16}\n"
      "prompt: {text: 'a: \"b\"', negative: }\n"
      "sampling: {steps: +30, guidance: 1e1, seed: 9223372036854775807, scheduler: \"euler\"}\n"
      "bench: {json: TRUE}\n");
  EXPECT_EQ(s.get<std::string>("model.name"), "no");  // a text is a text, whatever YAML might take it for
  EXPECT_EQ(s.get<std::string>("model.variant"), "16");
  EXPECT_EQ(s.get<std::string>("prompt.text"), "a: \"b\"");
  EXPECT_FALSE(s.has("prompt.negative"));
  EXPECT_EQ(s.get<int64_t>("sampling.steps"), 30);
  EXPECT_EQ(s.get<double>("sampling.guidance"), 10);
  EXPECT_EQ(s.get<std::string>("sampling.seed"), "9223372036854775807");
  EXPECT_EQ(s.get<std::string>("sampling.scheduler"), "euler");
  EXPECT_EQ(s.get<bool>("bench.json"), true);
  EXPECT_EQ(s.get<int64_t>("sampling.count"), 1);
  EXPECT_EQ(s.get<std::string>("output.file"), "kinora-{seed}.png");
  EXPECT_FALSE(s.has("size.width"));
  EXPECT_EQ(source(s, "sampling.steps"), "my.yaml:3:19");
  EXPECT_EQ(source(s, "sampling.count"), "default");
  EXPECT_THROW(s.get<double>("sampling.steps"), Error);
  EXPECT_THROW(s.has("sampling.stpes"), Error);
}

TEST_F(SettingsFiles, WrongValuesAreNamedWithTheirPlace) {
  expect_error("sampling:\n  steps: many\n",
               "my.yaml:2:10: sampling.steps must be a whole number from 1 to 1000, not 'many'");
  expect_error("sampling:\n  steps: \"30\"\n",
               "my.yaml:2:10: sampling.steps must be a whole number from 1 to 1000, not the text '30'");
  for (std::string bad : {"0", "1001", "30.0", "0x10", "1_000", "99999999999999999999", "-1", "3O", "true", "''"}) {
    EXPECT_THROW(resolve("sampling: {steps: " + bad + "}\n"), Error) << bad;
  }
  for (std::string bad : {".nan", ".inf", "-.inf", "nan", "1e999", "-0.1", "1000.1", "4,5", "0x1p3", "one"}) {
    EXPECT_THROW(resolve("sampling: {guidance: '" + bad + "'}\n"), Error) << bad;
    EXPECT_THROW(resolve("sampling: {guidance: " + (bad.find(',') == bad.npos ? bad : "x") + "}\n"), Error) << bad;
  }
  for (std::string bad : {"yes", "on", "1", "'true'", "t"})
    EXPECT_THROW(resolve("bench: {json: " + bad + "}\n"), Error);
  expect_error("sampling: {scheduler: heun}\n",
               "my.yaml:1:23: sampling.scheduler must be dpm++, euler or scm, not 'heun'");
  expect_error("sampling: {steps: [30]}\n",
               "my.yaml:1:19: sampling.steps must be a whole number from 1 to 1000, not a list");
  expect_error("prompt:\n  text: {a: b}\n", "my.yaml:2:9: prompt.text must be a text, not a map");
  expect_error("sampling: 30\n", "my.yaml:1:11: 'sampling' is a section, a map of keys, not a value");
  expect_error("profiles: {a: {size: {width: 0}}}\n",
               "my.yaml:1:30: size.width must be a whole number from 1 to 1048576, not '0'");
}

TEST_F(SettingsFiles, SeveralSeeds) {
  for (std::string good : {"[1, 2, 5]", "1,2,5", "'1, 2,5'", "\n  - 1\n  - 2\n  - 5"}) {
    Settings s = resolve("sampling:\n  seed: " + good + "\n");
    EXPECT_EQ(s.get<std::string>("sampling.seed"), "1,2,5") << good;
    EXPECT_EQ(parse_integers(s.get<std::string>("sampling.seed")), (std::vector<int64_t>{1, 2, 5}));
  }
  for (std::string bad : {"[]", "''", "1,", ",1", "1,,2", "1,x", "[1, -2]", "[1, [2]]", "[1, {a: 2}]", "1.5", "1;2",
                          "9223372036854775808"})
    EXPECT_THROW(resolve("sampling: {seed: " + (bad[0] == '[' ? bad : "'" + bad + "'") + "}\n"), Error) << bad;
  expect_error("sampling: {seed: [1, x]}\n",
               "my.yaml:1:18: sampling.seed must be whole numbers from 0 to 2^63 - 1, separated by commas, not '1,x'");
  EXPECT_EQ(resolve(settings_yaml(resolve("sampling: {seed: [3, 4]}\n"))).get<std::string>("sampling.seed"), "3,4");
}

TEST_F(SettingsFiles, ChoicesMayBeNumbered) {
  for (std::string good : {"auto", "cpu", "cuda", "cuda:0", "cuda:15"}) {
    EXPECT_EQ(resolve("compute: {device: '" + good + "'}\n").get<std::string>("compute.device"), good);
  }
  for (std::string bad : {"cuda:", "cuda:N", "cuda:-1", "cuda:1234", "cuda:1x", "gpu", "CPU", ""}) {
    EXPECT_THROW(resolve("compute: {device: '" + bad + "'}\n"), Error) << bad;
  }
  auto device = nlohmann::json::parse(settings_schema())["$defs"]["compute"]["properties"]["device"]["anyOf"];
  EXPECT_EQ(device[0]["enum"], (nlohmann::json{"auto", "cpu", "cuda"}));
  EXPECT_EQ(device[1]["pattern"], "^cuda:[0-9]{1,3}$");
}

TEST_F(SettingsFiles, UnknownKeysSuggestKnownOnes) {
  auto suggests = [](const std::string& key) { return nearest_setting(key); };
  EXPECT_EQ(suggests("sampling.stpes"), "sampling.steps");
  EXPECT_EQ(suggests("steps"), "sampling.steps");
  EXPECT_EQ(suggests("cfg_scale"), "sampling.guidance");
  EXPECT_EQ(suggests("sampling.cfg-scale"), "sampling.guidance");
  EXPECT_EQ(suggests("smapling"), "sampling");
  EXPECT_EQ(suggests("model.path"), "model.name");
  EXPECT_EQ(suggests("generate.dtyp"), "compute.dtype");
  EXPECT_EQ(suggests("weather"), "");
  EXPECT_EQ(suggests(""), "");
  EXPECT_EQ(suggests(std::string(200000, 's')), "");
  expect_error("sampling:\n  guidence: 3\n",
               "my.yaml:2:3: unknown key 'sampling.guidence'; did you mean 'sampling.guidance'?");
  expect_error("weather: sunny\n", "my.yaml:1:1: unknown key 'weather' (docs/configuration.md lists the keys)");
  expect_error("sampling.steps: 3\n",
               "my.yaml:1:1: 'sampling.steps' in one word is for --set; in a file, write steps under sampling");
  expect_error("<<: {sampling: {steps: 3}}\n", "my.yaml:1:1: unknown key '<<' (docs/configuration.md lists the keys)");
}

TEST_F(SettingsFiles, PrecedenceHoldsForEveryLayer) {
  write("low.yaml",
        "sampling: {steps: 1, count: 1, batch: 1, seed: 1}\nsize: {width: 1, height: 1}\nmemory: {tile: 32}\n");
  write("high.yaml",
        "sampling: {steps: 2, count: 2, batch: 2, seed: 2}\nsize: {width: 2, height: 2}\n"
        "profiles:\n  p: {sampling: {steps: 3, count: 3, batch: 3, seed: 3}, bench: {size: 3}}\n");
  std::string mine =
      "base: [low.yaml, high.yaml]\nsampling: {steps: 4, count: 4, batch: 4, seed: 4}\nsize: {width: 4}\n"
      "profiles:\n  p:\n    sampling: {steps: 5, count: 5, batch: 5}\n";
  SettingsRequest request{.profile = "p", .sets = {"sampling.steps=6", "sampling.count=5", "sampling.count=6"}};
  request.flags = {{"sampling.steps", "7"}};
  Settings s = resolve(mine, request);
  EXPECT_EQ(s.get<int64_t>("sampling.steps"), 7);       // a flag
  EXPECT_EQ(s.get<int64_t>("sampling.count"), 6);       // --set, the later
  EXPECT_EQ(s.get<int64_t>("sampling.batch"), 5);       // the profile
  EXPECT_EQ(s.get<std::string>("sampling.seed"), "3");  // a base's part of the profile, over the file
  EXPECT_EQ(s.get<int64_t>("bench.size"), 3);
  EXPECT_EQ(s.get<int64_t>("size.width"), 4);    // the file
  EXPECT_EQ(s.get<int64_t>("size.height"), 2);   // the later base
  EXPECT_EQ(s.get<int64_t>("memory.tile"), 32);  // the earlier base
  EXPECT_EQ(source(s, "sampling.steps"), "--steps");
  EXPECT_EQ(source(s, "sampling.count"), "--set");
  EXPECT_EQ(source(s, "sampling.batch"), "my.yaml:6:43 (profile p)");
  EXPECT_EQ(source(s, "sampling.seed"), "high.yaml:4:54 (profile p)");
  EXPECT_EQ(source(s, "size.height"), "high.yaml:2:26");
  EXPECT_EQ(resolve(mine).get<std::string>("sampling.seed"), "4");  // without the profile

  SettingsRequest two{.files = {temp_.path("my.yaml"), temp_.path("low.yaml")}};
  EXPECT_EQ(resolve_settings(two).get<int64_t>("sampling.steps"), 1);  // the later of two files
  EXPECT_EQ(resolve_settings(two).get<int64_t>("sampling.batch"), 1);
}

TEST_F(SettingsFiles, NullTakesAValueBack) {
  write("base.yaml", "sampling: {steps: 9, count: 9}\n");
  Settings s = resolve("base: base.yaml\nsampling: {steps: ~, count: null}\nprofiles:\nsize:\n");
  EXPECT_FALSE(s.has("sampling.steps"));
  EXPECT_EQ(s.get<int64_t>("sampling.count"), 1);
  EXPECT_EQ(source(s, "sampling.count"), "default");
  s = resolve("sampling: {steps: 9}\nprompt: {text: a}\n", {.sets = {"sampling.steps=null", "prompt.text="}});
  EXPECT_FALSE(s.has("sampling.steps"));
  EXPECT_EQ(s.get<std::string>("prompt.text"), "");
  EXPECT_THROW(resolve("", {.sets = {"sampling.steps="}}), Error);
}

TEST_F(SettingsFiles, RivalsReplaceOneAnother) {
  write("base.yaml", "prompt: {text: a cat}\n");
  Settings s = resolve("base: base.yaml\nprompt: {file: prompts.txt}\n");
  EXPECT_FALSE(s.has("prompt.text"));
  EXPECT_EQ(s.get<std::string>("prompt.file"), "prompts.txt");
  SettingsRequest flag;
  flag.flags = {{"prompt.text", "a dog"}};
  s = resolve("prompt: {file: prompts.txt}\n", flag);
  EXPECT_EQ(s.get<std::string>("prompt.text"), "a dog");
  EXPECT_FALSE(s.has("prompt.file"));
  expect_error("prompt:\n  text: a cat\n  file: prompts.txt\n",
               "my.yaml:3:9: prompt.file and prompt.text exclude one another; give one");
  flag.flags.push_back({"prompt.file", "x"});
  expect_error("", "prompt and --prompt-file exclude one another; give one", ErrorKind::usage, flag);
}

TEST_F(SettingsFiles, Profiles) {
  write("base.yaml", "profiles: {desktop: {compute: {threads: 16}}}\n");
  std::string mine =
      "base: base.yaml\nprofiles:\n  laptop: {compute: {threads: 4}}\n  '4090': {compute: {threads: 8}}\n  empty:\n";
  EXPECT_EQ(resolve(mine, {.profile = "laptop"}).get<int64_t>("compute.threads"), 4);
  EXPECT_EQ(resolve(mine, {.profile = "desktop"}).get<int64_t>("compute.threads"), 16);
  EXPECT_EQ(resolve(mine, {.profile = "4090"}).get<int64_t>("compute.threads"), 8);
  EXPECT_EQ(resolve(mine, {.profile = "empty"}).get<int64_t>("compute.threads"), 0);
  expect_error(mine, "no profile 'lptop' in my.yaml; did you mean 'laptop'?", ErrorKind::usage, {.profile = "lptop"});
  expect_error("base: base.yaml\n", "no profile 'server' in my.yaml (it has 'desktop')", ErrorKind::usage,
               {.profile = "server"});
  expect_error("", "no profile 'server' in my.yaml; it has none", ErrorKind::usage, {.profile = "server"});
  EXPECT_THROW(resolve_settings({.profile = "laptop"}), Error);
  expect_error("profiles: [a]\n", "my.yaml:1:11: 'profiles' is a map of names, not a list");
  expect_error("profiles: {a: 3}\n", "my.yaml:1:15: the profile 'a' is a map of keys, not a value");
  expect_error("profiles: {a: {base: x}}\n", "my.yaml:1:16: 'base' stands at the top of a file, not in a profile");
  expect_error("profiles: {a: {profiles: {}}}\n",
               "my.yaml:1:16: 'profiles' stands at the top of a file, not in a profile");
}

TEST_F(SettingsFiles, VariablesReferToKeysAndTheEnvironment) {
  set_variable("KINORA_TEST_VALUE", "12");
  write("base.yaml", "output: {file: '${model.name}/{seed}-${sampling.steps}.png'}\n");
  Settings s = resolve(
      "base: base.yaml\n"
      "model:\n  name: ${model.variant}-${compute.dtype}\n  variant: v${env:KINORA_TEST_VALUE}\n"
      "sampling:\n  steps: ${env:KINORA_TEST_VALUE}\n  count: '${env:KINORA_TEST_ABSENT:-7}'\n  batch: "
      "1${sampling.count}\n"
      "prompt:\n  text: costs $5, $$ and $${literally}\n  negative: "
      "${env:KINORA_TEST_ABSENT:-}|${env:KINORA_TEST_ABSENT:-a:-b $c}\n",
      {.profile = "", .sets = {"size.width=${env:KINORA_TEST_VALUE}8"}});
  EXPECT_EQ(s.get<std::string>("model.name"), "v12-auto");
  EXPECT_EQ(s.get<std::string>("output.file"), "v12-auto/{seed}-12.png");
  EXPECT_EQ(s.get<int64_t>("sampling.steps"), 12);
  EXPECT_EQ(s.get<int64_t>("sampling.count"), 7);
  EXPECT_EQ(s.get<int64_t>("sampling.batch"), 17);
  EXPECT_EQ(s.get<int64_t>("size.width"), 128);
  EXPECT_EQ(s.get<std::string>("prompt.text"), "costs $5, $$ and ${literally}");
  EXPECT_EQ(s.get<std::string>("prompt.negative"), "|a:-b $c");
  set_variable("KINORA_TEST_VALUE", "");
  EXPECT_EQ(resolve("model:\n  name: a${env:KINORA_TEST_VALUE}\n").get<std::string>("model.name"), "a");
  EXPECT_EQ(resolve("model:\n  name: ${env:KINORA_TEST_VALUE:-b}\n").get<std::string>("model.name"), "b");
  SettingsRequest flag;
  flag.flags = {{"prompt.text", "${model.name}"}};
  EXPECT_EQ(resolve("", flag).get<std::string>("prompt.text"), "${model.name}");  // the shell has had its turn
}

TEST_F(SettingsFiles, BadVariables) {
  auto in_name = [](const std::string& text) { return "model:\n  name: " + text + "\n"; };
  expect_error(in_name("a${"), "my.yaml:2:9: model.name has a ${ without its } (write $${ for the characters ${)");
  expect_error(in_name("${env:KINORA_TEST_ABSENT}"),
               "my.yaml:2:9: model.name needs the environment variable KINORA_TEST_ABSENT, which is not set "
               "(${env:KINORA_TEST_ABSENT:-...} has a default)");
  expect_error(in_name("${env:KINORA_TEST_ABSENT:-${model.variant}}"),
               "my.yaml:2:9: model.name has a ${ inside another; variables do not nest");
  expect_error(in_name("${env:a b}"), "my.yaml:2:9: model.name refers to '${env:a b}', which is no name of a variable");
  expect_error(in_name("${env:}"), "my.yaml:2:9: model.name refers to '${env:}', which is no name of a variable");
  expect_error(in_name("${HOME}"),
               "my.yaml:2:9: model.name refers to '${HOME}', which is no key; the environment is ${env:NAME}");
  expect_error(in_name("${model.varient}"),
               "my.yaml:2:9: model.name refers to '${model.varient}', which is no key; did you mean ${model.variant}?");
  expect_error(in_name("${size.width}"), "my.yaml:2:9: model.name refers to ${size.width}, which has no value here");
  expect_error(in_name("${model.name}"), "my.yaml:2:9: model.name refers to itself: ${model.name} -> ${model.name}");
  expect_error("model:\n  name: ${model.variant}\n  variant: ${prompt.text}\nprompt:\n  text: ${model.name}\n",
               "my.yaml:2:9: model.name refers to itself: ${model.name} -> ${model.variant} -> ${prompt.text} -> "
               "${model.name}");
  expect_error("sampling:\n  steps: ${model.name}\nmodel: {name: x}\n",
               "my.yaml:2:10: sampling.steps must be a whole number from 1 to 1000, not 'x'");
  expect_error("", "--set sampling.steps must be a whole number from 1 to 1000, not '0'", ErrorKind::usage,
               {.sets = {"sampling.steps=${sampling.seed}"}});
}

TEST_F(SettingsFiles, VariablesCannotGrowWithoutEnd) {
  std::string text;
  std::vector<std::string> keys{"model.name", "model.variant", "prompt.text", "prompt.negative",
                                "noise.file", "noise.save",    "output.file", "output.preview"};
  for (size_t i = 0; i < keys.size(); ++i) {
    std::string value(i == 0 ? 1000 : 0, 'x');
    for (int j = 0; j < 50 && i > 0; ++j) value += "${" + keys[i - 1] + "}";
    size_t dot = keys[i].find('.');
    std::string section = keys[i].substr(0, dot) + ":\n";
    text +=
        (text.find(section) == std::string::npos ? section : "") + "  " + keys[i].substr(dot + 1) + ": " + value + "\n";
  }
  try {
    resolve(text);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("longer than 64 KiB"), std::string::npos) << error.what();
  }
}

TEST_F(SettingsFiles, BasesMakeATree) {
  write("configs/common.yaml", "sampling: {steps: 11}\n");
  write("configs/models/m.yaml", "base: ../common.yaml\nmodel: {name: m}\n");
  Settings s = resolve_settings({.files = {temp_.path("configs/models/m.yaml")}});
  EXPECT_EQ(s.get<int64_t>("sampling.steps"), 11);
  EXPECT_EQ(source(s, "sampling.steps"), "configs/common.yaml:1:19");
  // A base may be reached by two ways.
  write("a.yaml", "base: sub/c.yaml\n");
  write("b.yaml", "base: ./sub/../sub/c.yaml\n");
  write("sub/c.yaml", "sampling: {count: 5}\n");
  EXPECT_EQ(resolve("base: [a.yaml, b.yaml, a.yaml]\n").get<int64_t>("sampling.count"), 5);
}

TEST_F(SettingsFiles, BadBases) {
  write("base.yaml", "base: my.yaml\n");
  expect_error("base: base.yaml\n", "base.yaml:1:7: a file is its own base: my.yaml -> base.yaml -> my.yaml");
  expect_error("base: my.yaml\n", "my.yaml:1:7: a file is its own base: my.yaml -> my.yaml");
  expect_error("base: none.yaml\n", "my.yaml:1:7: cannot open the base 'none.yaml': No such file or directory",
               ErrorKind::io);
  expect_error("base: {a: b}\n", "my.yaml:1:7: a base is the path of a file, not a map");
  expect_error("base:\n", "my.yaml:1:1: a base is the path of a file, not nothing");
  expect_error("base: ''\n", "my.yaml:1:7: a base is the path of a file, not an empty text");
  expect_error("base: [[a.yaml]]\n", "my.yaml:1:8: a base is the path of a file, not a list");
  expect_error("base: \"${env:HOME}/a.yaml\"\n", "my.yaml:1:7: a base cannot hold variables");
  expect_error("base: \"a\\nb.yaml\"\n", "my.yaml:1:7: a base with a control character in its name");
  write("bad.yaml", "sampling:\n  steps: 0\n");
  expect_error("base: bad.yaml\n", "bad.yaml:2:10: sampling.steps must be a whole number from 1 to 1000, not '0'");
  fs::create_directory(temp_.path("folder"));
  expect_error("base: folder\n", "my.yaml:1:7: the base 'folder' is not a regular file", ErrorKind::io);
  ASSERT_EQ(mkfifo(temp_.path("pipe").c_str(), 0600), 0);
  expect_error("base: pipe\n", "my.yaml:1:7: the base 'pipe' is not a regular file", ErrorKind::io);
  EXPECT_THROW(resolve_settings({.files = {temp_.path("pipe")}}), Error);
  EXPECT_THROW(resolve_settings({.files = {temp_.path("folder")}}), Error);
  EXPECT_THROW(resolve_settings({.files = {temp_.path("nowhere.yaml")}}), Error);
}

TEST_F(SettingsFiles, BasesStayInTheirTree) {
  std::string secret = write("secret.yaml", "sampling: {steps: 11}\n");
  auto expect_outside = [&](const std::string& file, const std::string& text, const std::string& word) {
    try {
      resolve_settings({.files = {write(file, text)}});
      ADD_FAILURE() << file << ": " << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::input);
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  };
  expect_outside("in/my.yaml", "base: " + secret + "\n", "absolute path");
  expect_outside("in/my.yaml", "base: /dev/zero\n", "absolute path");
  expect_outside("in/my.yaml", "base: ../secret.yaml\n", "lies outside " + fs::canonical(temp_.path("in")).string());
  expect_outside("in/configs/a/my.yaml", "base: ../../../secret.yaml\n",
                 "lies outside " + (fs::canonical(temp_.path("in")) / "configs").string());
  fs::create_symlink("../secret.yaml", temp_.path("in/link.yaml"));
  expect_outside("in/my.yaml", "base: link.yaml\n", "lies outside");
  fs::create_directory_symlink("..", temp_.path("in/up"));
  expect_outside("in/my.yaml", "base: up/secret.yaml\n", "lies outside");
  // A folder whose name merely begins like the tree's is another folder.
  write("inner/x.yaml", "");
  expect_outside("in/my.yaml", "base: ../inner/x.yaml\n", "lies outside");
  // The file that a user names may be a link to anywhere: its tree is where it really is.
  fs::create_symlink("in/configs/real.yaml", temp_.path("link.yaml"));
  write("in/configs/real.yaml", "base: other.yaml\n");
  write("in/configs/other.yaml", "sampling: {steps: 12}\n");
  EXPECT_EQ(resolve_settings({.files = {temp_.path("link.yaml")}}).get<int64_t>("sampling.steps"), 12);
}

TEST_F(SettingsFiles, BasesOfBasesCannotGrowWithoutEnd) {
  for (int i = 0; i < 30; ++i) {
    std::string next = std::to_string(i + 1) + ".yaml";
    write(std::to_string(i) + ".yaml", "base: [" + next + ", " + next + "]\n");
  }
  write("30.yaml", "");
  try {
    resolve_settings({.files = {temp_.path("0.yaml")}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("more than 64 files"), std::string::npos) << error.what();
  }
}

TEST_F(SettingsFiles, SetsNeedAKeyAndAValue) {
  expect_error("", "--set takes KEY=VALUE, not 'sampling.steps'", ErrorKind::usage, {.sets = {"sampling.steps"}});
  expect_error("", "--set: unknown key 'sampling.step'; did you mean 'sampling.steps'?", ErrorKind::usage,
               {.sets = {"sampling.step=3"}});
  expect_error("", "--set: unknown key 'base' (docs/configuration.md lists the keys)", ErrorKind::usage,
               {.sets = {"base=x.yaml"}});
  expect_error("", "--set sampling.steps must be a whole number from 1 to 1000, not 'many'", ErrorKind::usage,
               {.sets = {"sampling.steps=many"}});
  EXPECT_EQ(resolve("", {.sets = {"prompt.text=a=b: # c"}}).get<std::string>("prompt.text"), "a=b: # c");
}

TEST_F(SettingsFiles, CheckFindsEverything) {
  std::string file =
      write("my.yaml", "sampling:\n  stpes: 3\n  guidance: high\nsize: 3\nprofiles:\n  a: {bench: {size: 0}}\n");
  std::vector<std::string> problems = check_settings(file);
  ASSERT_EQ(problems.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(problems[i].starts_with(file + ":" + std::vector<std::string>{"2:3", "3:13", "4:7", "6:21"}[i]))
        << problems[i];
  }
  file = write("my.yaml",
               "profiles:\n  a: {model: {name: '${model.name}'}}\n  b: {model: {name: '${size.width}'}}\n  c:\n");
  EXPECT_EQ(check_settings(file).size(), 2u);  // each profile is tried
  std::string many;
  for (int i = 0; i < 4000; ++i) many += "key" + std::to_string(i) + ": 1\n";
  EXPECT_EQ(check_settings(write("my.yaml", many)).size(), 51u);  // 50 and a word about the rest
  many = "profiles:\n";
  for (int i = 0; i < 1500; ++i) many += "  p" + std::to_string(i) + ": {model: {name: '${size.width}'}}\n";
  EXPECT_EQ(check_settings(write("my.yaml", many)).size(), 50u);
  EXPECT_EQ(check_settings(write("my.yaml", "base: none.yaml\n")).size(), 1u);
  EXPECT_EQ(check_settings(write("my.yaml", "a: [\n")).size(), 1u);
  EXPECT_EQ(check_settings(temp_.path("nowhere.yaml")).size(), 1u);
  ASSERT_EQ(mkfifo(temp_.path("pipe").c_str(), 0600), 0);
  EXPECT_EQ(check_settings(temp_.path("pipe")).size(), 1u);  // and does not wait for a writer
  EXPECT_TRUE(check_settings(write("my.yaml", "sampling: {steps: 3}\n")).empty());
}

TEST_F(SettingsFiles, WhatIsShownCanBeReadAgain) {
  Settings s = resolve(
      "prompt: {text: \"a: #b 'c' \\\"d\\\"\\n\\te \\u00e9 \\U0001F600 \\x7f $${x} \", negative: 'null', file: ~}\n"
      "model: {name: '12', variant: 'true'}\nnoise: {file: '', save: '- x'}\n"
      "sampling: {guidance: 0.1, seed: 9223372036854775807}\noutput: {preview: 'p-{seed}.png'}\n");
  std::string shown = settings_yaml(s);
  EXPECT_NE(shown.find("my.yaml:4:33\n"), std::string::npos) << shown;
  Settings again = resolve(shown);
  // A name that tries to be a line of its own.
  EXPECT_NO_THROW(
      resolve(settings_yaml(resolve("profiles: {\"a\\nb: c\": {size: {width: 3}}}\n", {.profile = "a\nb: c"}))));
  for (const SettingDef& def : setting_table()) {
    ASSERT_EQ(again.has(def.key), s.has(def.key)) << def.key;
    if (s.has(def.key)) {
      EXPECT_EQ(again.find(def.key)->value, s.find(def.key)->value) << def.key;
    }
  }
}

TEST(SettingsTable, IsInOrder) {
  std::set<std::string> keys, sections;
  std::string last;
  for (const SettingDef& def : setting_table()) {
    std::string key(def.key), section = key.substr(0, key.find('.'));
    EXPECT_TRUE(two_names(key, '.', kLower, kLower + "_")) << key;
    EXPECT_TRUE(keys.insert(key).second) << key;
    EXPECT_TRUE(section == last || sections.insert(section).second) << key << " stands apart from its section";
    last = section;
    EXPECT_NE(def.fallback != nullptr, !def.otherwise.empty()) << key;
    EXPECT_EQ(def.type == SettingType::choice, !def.choices.empty()) << key;
    bool number =
        def.type == SettingType::integer || def.type == SettingType::integers || def.type == SettingType::real;
    EXPECT_EQ(number, def.high > def.low) << key;
    EXPECT_FALSE(def.flags.empty() || def.commands.empty() || def.doc.empty() || def.doc.ends_with('.')) << key;
    if (!def.instead_of.empty()) {
      EXPECT_EQ(find_setting(def.instead_of)->instead_of, def.key);
    }
    if (def.fallback) {
      EXPECT_NO_THROW(parse_setting(def, def.fallback, true, ErrorKind::input, key));
    }
  }
}

TEST(SettingsTable, TakesEveryQuantization) {
  EXPECT_EQ("none|" + quant_format_names("|", "|"), find_setting("compute.quantize")->choices);
}

TEST(SettingsTable, SchemaHoldsEveryKey) {
  auto schema = nlohmann::json::parse(settings_schema());
  size_t count = 0;
  for (const auto& [section, body] : schema["$defs"].items()) {
    EXPECT_EQ(body["additionalProperties"], false);
    for (const auto& [name, value] : body["properties"].items()) {
      const SettingDef* def = find_setting(section + "." + name);
      ASSERT_NE(def, nullptr) << section << "." << name;
      EXPECT_EQ(value.contains("default"), def->fallback != nullptr);
      ++count;
    }
    EXPECT_EQ(schema["properties"][section]["$ref"], "#/$defs/" + section);
    EXPECT_EQ(schema["properties"]["profiles"]["additionalProperties"]["properties"][section]["$ref"],
              "#/$defs/" + section);
  }
  EXPECT_EQ(count, setting_table().size());
  auto steps = schema["$defs"]["sampling"]["properties"]["steps"]["anyOf"][0];
  EXPECT_EQ(steps, (nlohmann::json{{"type", "integer"}, {"minimum", 1}, {"maximum", 1000}}));
}

TEST(SettingsTable, CommittedPagesAreTheGeneratedOnes) {
  EXPECT_EQ(read_file(KINORA_SOURCE_DIR "/docs/configuration.md", 1 << 20), settings_reference())
      << "run: build/kinora config schema --markdown > docs/configuration.md";
  EXPECT_EQ(read_file(KINORA_SOURCE_DIR "/configs/schema.json", 1 << 20), settings_schema())
      << "run: build/kinora config schema > configs/schema.json";
}

TEST(SettingsTable, PresetsAreGood) {
  size_t count = 0;
  std::set<std::string> models;
  for (const auto& entry : fs::directory_iterator(KINORA_SOURCE_DIR "/configs/models")) {
    std::string path = entry.path().string(), text = read_file(path, 1 << 20);
    EXPECT_EQ(check_settings(path), std::vector<std::string>{}) << path;
    EXPECT_TRUE(text.starts_with("# yaml-language-server: $schema=../schema.json\n")) << path;
    Settings s = resolve_settings({.files = {path}});
    EXPECT_TRUE(
        two_names(s.get<std::string>("model.name"), '/', kLower + kUpperDigits + "-", kLower + kUpperDigits + "._-"))
        << path;
    for (const char* key : {"sampling.steps", "sampling.guidance", "size.width", "size.height"})
      EXPECT_TRUE(s.has(key)) << path;
    models.insert(s.get<std::string>("model.name"));
    ++count;
  }
  EXPECT_EQ(count, 15u);
  EXPECT_EQ(models.size(), 14u);  // Open-Sora 2.0 has two sizes
}

}  // namespace
}  // namespace kinora::test
