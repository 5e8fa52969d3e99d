// Runs the program in a folder of its own.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>

#include "io/file.h"
#include "temp_folder.h"

namespace kinora::test {

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
    EXPECT_TRUE(last == 0 || (o.err.starts_with("encoding ") && o.err[last - 1] == '\n')) << o.err;
    EXPECT_EQ(o.err.find('\n', last), o.err.size() - 1) << o.err;
    EXPECT_NE(o.err.find(word, last), std::string::npos) << o.err;
    for (const auto& entry : std::filesystem::directory_iterator(temp_.path())) {
      std::string name = entry.path().filename();
      EXPECT_TRUE(!name.ends_with(".png") && !name.ends_with(".tmp")) << arguments << " left " << name;
    }
  }
  TempFolder temp_;
};

}  // namespace kinora::test
