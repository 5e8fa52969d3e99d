// kinora pull, kinora models and --model ORG/NAME as a user meets them; killed at random; beside huggingface_hub.
#include <random>

#include "hub/site.h"
#include "io/image.h"

namespace kinora::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class HubCli : public Site {
 protected:
  struct Outcome {
    int status;
    std::string out, err;
  };
  std::string environment() const {
    return "HF_HUB_ETAG_TIMEOUT=2 HF_HUB_DOWNLOAD_TIMEOUT=2 HF_ENDPOINT=" + settings_.endpoint + " HF_HUB_CACHE='" +
           settings_.cache + "' ";
  }
  Outcome run(const std::string& arguments, const std::string& before = "") {
    std::string command = "cd '" + temp_.path() + "' && " + before + " env " + environment() +
                          "'" KINORA_BINARY_DIR "/kinora' " + arguments + " >out.txt 2>err.txt </dev/null";
    int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_file(temp_.path("out.txt"), 1 << 24),
            read_file(temp_.path("err.txt"), 1 << 24)};
  }
  void expect_error(const std::string& arguments, int status, const std::string& word, const std::string& before = "") {
    Outcome o = run(arguments, before);
    EXPECT_EQ(o.status, status) << arguments << ": " << o.err;
    size_t last = o.err.rfind("kinora: ");
    ASSERT_NE(last, std::string::npos) << o.err;
    EXPECT_EQ(o.err.find('\n', last), o.err.size() - 1) << o.err;
    EXPECT_NE(o.err.find(word, last), std::string::npos) << o.err;
  }
  hub::RepositoryCache repository_of(const std::string& id) { return hub::RepositoryCache(settings_.cache, id); }
  void put_tiny() {
    fs::create_directories(temp_.path("repos/org/tiny"));
    copy_tiny_sprint(temp_.path("repos/org/tiny/main"));
  }
};

TEST_F(HubCli, DrawsWithAModelByName) {
  put_tiny();
  expect_error("generate cat --model org/tiny --steps 1 -o a.png", 2,
               "to download): run kinora pull org/tiny, or add --yes");
  Outcome o = run("tokenize 'a cat' --model org/tiny --yes");  // the tokenizer alone
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.err.find("tokenizer/tokenizer.json"), std::string::npos);
  EXPECT_EQ(o.err.find("transformer"), std::string::npos) << o.err;
  o = run("generate cat --model org/tiny --steps 1 --seed 3 --yes -o a.png");
  ASSERT_EQ(o.status, 0) << o.err;
  std::string record = read_record(temp_.path("a.png")).json;
  EXPECT_TRUE(Json::parse(record)["model"].get<std::string>().starts_with("org/tiny@")) << record;
  // From here on without the hub.
  o = run("generate --from a.png -o b.png", "HF_HUB_OFFLINE=1");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(read_file(temp_.path("a.png"), 1 << 24), read_file(temp_.path("b.png"), 1 << 24));
  EXPECT_EQ(run("inspect", "HF_HUB_OFFLINE=1 KINORA_MODEL=org/tiny").status, 0);
  expect_error("generate cat --model org/other -o c.png", 5, "HF_HUB_OFFLINE", "HF_HUB_OFFLINE=1");
  expect_error("generate cat --model org/other -o c.png", 3, "there is no folder org/other");
  expect_error("generate cat --model org/tiny --variant fp16 -o c.png", 3, "no weights of the variant 'fp16'");
}

TEST_F(HubCli, PullsListsVerifiesAndRemoves) {
  put_tiny();
  put_model();
  Outcome o = run("pull org/model --dry-run");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_NE(o.out.find("100 kB  transformer/diffusion_pytorch_model.safetensors"), std::string::npos) << o.out;
  EXPECT_NE(o.out.find("transformer/diffusion_pytorch_model.bin: pickled weights"), std::string::npos) << o.out;
  EXPECT_FALSE(fs::exists(settings_.cache));
  o = run("pull org/tiny");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_EQ(o.out.find(settings_.cache + "/models--org--tiny/snapshots/"), 0u);
  EXPECT_EQ(run("pull org/model --quiet").err, "");
  o = run("models --json");
  ASSERT_EQ(o.status, 0) << o.err;
  std::map<std::string, Json> rows;
  for (const Json& row : Json::parse(o.out)) rows[row["name"]] = row;
  EXPECT_EQ(rows["org/tiny"]["state"], "ok");
  EXPECT_EQ(rows["org/tiny"]["dtype"], "F32");
  EXPECT_EQ(rows["org/tiny"]["type"], "SanaSprintPipeline");
  EXPECT_EQ(rows["org/model"]["state"], "damaged");  // its weights are noise
  EXPECT_EQ(rows.count("kinora-mini"), 1u);
  EXPECT_EQ(rows["kinora-mini-video"]["type"], "OpenSora");
  EXPECT_EQ(run("models verify").status, 0);
  std::ofstream(fs::canonical(repository() + "/snapshots/" + std::string(rows["org/model"]["commit"]) +
                              "/scheduler/scheduler_config.json"))
      << "{\"b\": 3}";
  expect_error("models verify org/model", 4, "1 file is damaged");
  expect_error("models verify --delete-damaged", 4, "now removed");
  EXPECT_EQ(run("pull org/model").status, 0);
  EXPECT_EQ(run("models verify").status, 0);
  expect_error("models rm org/tiny", 2, "add --yes");
  expect_error("models rm org/absent --yes", 3, "not in the cache");
  expect_error("models rm org/tiny@v9 --yes", 3, "no revision v9");
  put("org/tiny/v2/extra.json", "{}");
  put("org/tiny/v2/model.safetensors", "shared");
  put("org/tiny/v3/model.safetensors", "shared");
  ASSERT_EQ(run("pull org/tiny@v2 '*'").status, 0);
  ASSERT_EQ(run("pull org/tiny@v3 '*'").status, 0);
  std::string v2 = repository_of("org/tiny").commit_of("v2").value();
  std::ofstream(fs::canonical(repository_of("org/tiny").file(v2, "model.safetensors"))) << "shaReD";
  expect_error("models verify org/tiny --delete-damaged", 4, "2 files are damaged");  // one blob, in two revisions
  expect_sound_cache();
  ASSERT_EQ(run("pull org/tiny@v2 '*'").status, 0);
  ASSERT_EQ(run("pull org/tiny@v3 '*'").status, 0);
  o = run("models rm org/tiny@v2 org/tiny@v3 --yes");
  EXPECT_EQ(o.out, "org/tiny@v2 removed, 2 B freed\norg/tiny@v3 removed, 6 B freed\n") << o.err;
  EXPECT_EQ(run("models verify").status, 0);
  o = run("models rm org/tiny@main org/model --yes");
  ASSERT_EQ(o.status, 0) << o.err;
  EXPECT_TRUE(hub::scan_cache(settings_.cache).empty());
}

TEST_F(HubCli, WrongUse) {
  put_model();
  expect_error("pull", 2, "model is required");
  expect_error("pull nowhere", 2, "no name of a model");
  expect_error("pull org/model --jobs 0", 2, "jobs");
  expect_error("pull org/model nothing.json", 3, "has no file nothing.json");
  expect_error("pull org/model", 5, "HF_HUB_OFFLINE", "HF_HUB_OFFLINE=1");
  expect_error("models rm", 2, "models is required");
  settings_.endpoint = "x";
  expect_error("pull org/model", 2, "HF_ENDPOINT");
}

TEST_F(HubCli, WithoutTheHubWhatIsHereMustDo) {
  put_model();
  Outcome first = run("pull org/model");
  ASSERT_EQ(first.status, 0) << first.err;
  fault({{"path", "."}, {"status", 503}, {"headers", {{"Retry-After", "0"}}}});
  Outcome second = run("pull org/model");
  EXPECT_EQ(second.status, 0);
  EXPECT_EQ(second.out, first.out);
  EXPECT_NE(second.err.find("whether it is the latest is not known"), std::string::npos) << second.err;
  expect_error("pull org/model --force", 5, "HTTP 503");
  expect_error("pull org/other", 5, "HTTP 503");
}

TEST_F(HubCli, AFullDiskInTheMiddle) {
  put_model();
  expect_error("pull org/model", 5, "cannot write",
               "ulimit -f 40;");  // as far as the program sees: 40 kB files at most
  expect_sound_cache();
  EXPECT_EQ(run("pull org/model").status, 0);
  expect_whole(*hub::Hub(settings_).find({"org/model", "main"}, {}));
}

TEST_F(HubCli, InterruptKeepsWhatHasArrived) {
  put_model("org/model", 400'000);
  fault({{"path", "."}, {"host", "cdn"}, {"slow", 0.2}});
  Outcome o = run("pull org/model", "timeout --preserve-status -s INT 1");
  EXPECT_EQ(o.status, 130) << o.err;
  uint64_t partial = 0;
  for (const hub::CachedRepository& r : hub::scan_cache(settings_.cache)) partial += r.partial_bytes;
  EXPECT_GT(partial, 0u);
  expect_sound_cache();
}

// Two pulls of one model, both killed at a random moment; the cache must be sound each time and the next pull finish.
TEST_F(HubCli, KilledAtRandomAHundredTimes) {
  put("org/model/main/model_index.json", R"({"transformer": ["diffusers", "T"]})");
  put("org/model/main/transformer/config.json", "{}");
  put("org/model/main/transformer/diffusion_pytorch_model.safetensors", noise(100'000, 1));
  fault({{"path", "."}, {"host", "cdn"}, {"slow", 0.003}});
  std::mt19937 random(1);
  std::vector<std::string> variables{"HF_ENDPOINT=" + settings_.endpoint, "HF_HUB_CACHE=" + settings_.cache,
                                     "NO_PROXY=127.0.0.1"};
  auto start = [&] {
    pid_t child = fork();
    if (child == 0) {
      for (std::string& variable : variables) putenv(variable.data());
      for (int fd : {STDOUT_FILENO, STDERR_FILENO}) dup2(open("/dev/null", O_WRONLY), fd);
      execl(KINORA_BINARY_DIR "/kinora", "kinora", "pull", "org/model", "--quiet", nullptr);
      _exit(127);
    }
    return child;
  };
  auto finish = [](pid_t child) {
    int status = 0;
    waitpid(child, &status, 0);
    return status;
  };
  auto begun = std::chrono::steady_clock::now();
  ASSERT_EQ(finish(start()), 0);
  auto whole = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begun).count();
  int unfinished = 0;
  for (int round = 0; round < 100 && !HasFailure(); ++round) {
    if (round % 3 == 0) fs::remove_all(settings_.cache);
    pid_t children[] = {start(), start()};
    for (pid_t child : children) {
      usleep(static_cast<useconds_t>(std::uniform_int_distribution<long>(0, whole / 2)(random)));
      kill(child, SIGKILL);
    }
    for (pid_t child : children) unfinished += finish(child) != 0;
    expect_sound_cache();
    if (round % 3 != 2) continue;
    ASSERT_EQ(finish(start()), 0) << "after round " << round;
    EXPECT_TRUE(hub::Hub(settings_).find({"org/model", "main"}, {}));
    expect_sound_cache();
  }
  EXPECT_GT(unfinished, 50);
  expect_sound_cache();
}

// With huggingface_hub at hand: each finds what the other fetched, and its scanner has nothing to complain of.
TEST_F(HubCli, HuggingFacesOwnPackageAgrees) {
  std::string check = python() + " -c 'import huggingface_hub' 2>/dev/null";
  if (std::system(check.c_str()) != 0) GTEST_SKIP() << "huggingface_hub is not installed for " << python();
  put_tiny();
  put_model();
  configure({{"page", 4}});
  std::string script = environment() + "KINORA='" KINORA_BINARY_DIR "/kinora' " + python() +
                       " " KINORA_SOURCE_DIR "/tests/hub/compatibility.py '" + temp_.path() + "' >'" +
                       temp_.path("python.txt") + "' 2>&1";
  EXPECT_EQ(std::system(script.c_str()), 0) << read_file(temp_.path("python.txt"), 1 << 20);
}

}  // namespace
}  // namespace kinora::test
