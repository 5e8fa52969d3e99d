// A folder that goes away with the test.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "golden.h"

namespace kinora::test {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "kinora-test-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  std::string path(const std::string& name = "") const { return (std::filesystem::path(path_) / name).string(); }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path(name), std::ios::binary) << bytes;
    return path(name);
  }

 private:
  std::string path_;
};

// A copy of tests/golden/tiny_sprint, a Sana-Sprint folder with random weights, and kinora-mini's tokenizer.
inline void copy_tiny_sprint(const std::string& to) {
  namespace fs = std::filesystem;
  fs::copy(source_folder() + "/tests/golden/tiny_sprint", to, fs::copy_options::recursive);
  fs::copy(source_folder() + "/models/kinora-mini/tokenizer", fs::path(to) / "tokenizer");
}

}  // namespace kinora::test
