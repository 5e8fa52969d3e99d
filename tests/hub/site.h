// A hub on this machine for one test: tests/hub/server.py on two loopback ports, with repositories made here.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/error.h"
#include "io/file.h"
#include "io/hub.h"
#include "temp_folder.h"

namespace kinora::test {

// Python 3 for the server: $KINORA_TEST_PYTHON, else python3.
inline std::string python() {
  const char* given = std::getenv("KINORA_TEST_PYTHON");
  return given && *given ? given : "python3";
}

class Site : public testing::Test {
 protected:
  using Json = nlohmann::json;

  void SetUp() override {
    int in[2], out[2];
    ASSERT_EQ(pipe(in), 0);
    ASSERT_EQ(pipe(out), 0);
    server_ = fork();
    if (server_ == 0) {
      dup2(in[0], STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      for (int fd : {in[0], in[1], out[0], out[1]}) close(fd);
      std::string program = python();
      execlp(program.c_str(), program.c_str(), "-ISB", KINORA_SOURCE_DIR "/tests/hub/server.py", temp_.path().c_str(),
             nullptr);
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    alive_ = in[1];  // the server ends with it
    fcntl(alive_, F_SETFD, FD_CLOEXEC);
    FILE* ports = fdopen(out[0], "r");
    int hub = 0, cdn = 0;
    int read = std::fscanf(ports, "%d %d", &hub, &cdn);
    std::fclose(ports);
    ASSERT_EQ(read, 2) << "the test server did not start: install python3, or name one in KINORA_TEST_PYTHON";
    settings_.endpoint = "http://127.0.0.1:" + std::to_string(hub);
    cdn_ = "http://127.0.0.1:" + std::to_string(cdn);
    settings_.cache = temp_.path("cache");
    settings_.backoff = 0.01;
    settings_.metadata_timeout = settings_.download_timeout = 1;
    setenv("NO_PROXY", "127.0.0.1", 1);  // whatever the machine's proxy is
    setenv("no_proxy", "127.0.0.1", 1);
  }
  void TearDown() override {
    close(alive_);
    waitpid(server_, nullptr, 0);
  }

  // Bytes that differ from file to file and do not repeat.
  static std::string noise(size_t size, unsigned seed) {
    std::string bytes(size, '\0');
    uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
    for (char& c : bytes) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      c = static_cast<char>(state >> 56);
    }
    return bytes;
  }
  void put(const std::string& path, const std::string& bytes) {  // "ORG/NAME/REVISION/file"
    std::filesystem::path full = temp_.path("repos/" + path);
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full, std::ios::binary) << bytes;
  }
  // A pipeline of two parts with weights of `size` bytes that nothing but the hub looks into.
  void put_model(const std::string& name = "org/model", size_t size = 100'000, const std::string& revision = "main") {
    std::string base = name + "/" + revision + "/";
    put(base + "model_index.json",
        R"({"_class_name": "P", "transformer": ["diffusers", "T"], "text_encoder": ["transformers", "E"],)"
        R"( "scheduler": ["diffusers", "S"], "safety_checker": [null, null]})");
    put(base + "transformer/config.json", "{}");
    put(base + "transformer/diffusion_pytorch_model.safetensors", noise(size, 1));
    put(base + "transformer/diffusion_pytorch_model.bin", noise(1000, 2));
    put(base + "text_encoder/config.json", "{\"a\": 1}");
    put(base + "text_encoder/model.safetensors.index.json",
        R"({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})");
    put(base + "text_encoder/model-00001-of-00002.safetensors", noise(size / 2, 3));
    put(base + "text_encoder/model-00002-of-00002.safetensors", noise(size / 3, 4));
    put(base + "scheduler/scheduler_config.json", "{\"b\": 2}");
    put(base + "README.md", "# A model");
  }
  void configure(const Json& json) { temp_.write("server.json", json.dump()); }
  void fault(Json json) { configure({{"faults", Json::array({std::move(json)})}}); }
  std::vector<Json> requests() {
    std::vector<Json> all;
    std::ifstream file(temp_.path("requests.log"));
    for (std::string line; std::getline(file, line);) all.push_back(Json::parse(line));
    return all;
  }
  void forget_requests() { std::filesystem::remove(temp_.path("requests.log")); }

  hub::Plan plan(const std::string& name = "org/model", const hub::SelectOptions& select = {}) {
    return hub::Hub(settings_).plan(*hub::parse_model_name(name), select);
  }
  std::string pull(const std::string& name = "org/model", const hub::SelectOptions& select = {},
                   const hub::PullOptions& options = {}) {
    hub::Hub hub(settings_);
    return hub.pull(hub.plan(*hub::parse_model_name(name), select, options), options);
  }
  // The error that `body` ends with: its kind, and a word of its message.
  template <class F>
  void expect_failure(F&& body, ErrorKind kind, const std::string& word) {
    try {
      body();
      ADD_FAILURE() << "no error; expected one about '" << word << "'";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
    }
  }
  void expect_pull_fails(ErrorKind kind, const std::string& word, const std::string& name = "org/model") {
    expect_failure([&] { pull(name); }, kind, word);
  }
  // Everything the model needs is there and equals what the hub has.
  void expect_whole(const std::string& folder, const std::string& name = "org/model/main") {
    for (const char* file :
         {"model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors",
          "text_encoder/model-00001-of-00002.safetensors", "text_encoder/model-00002-of-00002.safetensors",
          "scheduler/scheduler_config.json"}) {
      EXPECT_EQ(read_file(folder + "/" + file, 1 << 24), read_file(temp_.path("repos/" + name + "/" + file), 1 << 24))
          << file;
    }
  }
  // By the rules of Hugging Face's scanner, and no blob but with its own hash.
  void expect_sound_cache() {
    for (const hub::CachedRepository& repository : hub::scan_cache(settings_.cache)) {
      EXPECT_EQ(repository.problem, "");
      for (const hub::CachedRevision& revision : repository.revisions) {
        for (const hub::FileCheck& check : hub::verify_revision(settings_.cache, repository, revision))
          EXPECT_EQ(check.result, hub::FileCheck::good) << check.path << " " << check.why;
      }
    }
  }
  std::string repository() const { return settings_.cache + "/models--org--model"; }

  TempFolder temp_;
  hub::Settings settings_;
  std::string cdn_;

 private:
  pid_t server_ = -1;
  int alive_ = -1;
};

}  // namespace kinora::test
