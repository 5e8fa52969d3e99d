#include "cuda/library.h"

#include <gtest/gtest.h>
#include <link.h>

#include <cstdlib>
#include <fstream>
#include <optional>

#include "core/error.h"
#include "temp_folder.h"

namespace kinora::cuda {
namespace {

namespace fs = std::filesystem;

// A library that every process has, to be copied under another name.
fs::path some_library() {
  fs::path found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        std::string name = info->dlpi_name ? info->dlpi_name : "";
        if (name.find("/libm.so") != std::string::npos) *static_cast<fs::path*>(to) = name;
        return 0;
      },
      &found);
  return found;
}

void write_header(const fs::path& root, int major, int minor, int patch) {
  fs::create_directories(root / "include");
  std::ofstream(root / "include" / "probe_version.h")
      << "/* of probe */\n#ifndef PROBE_VERSION_H_\n#define PROBE_VERSION_H_\n#define PROBE_MAJOR " << major
      << "\n#define PROBE_MINOR " << minor << "\n#define PROBE_PATCHLEVEL " << patch
      << "\n#define PROBE_VERSION (PROBE_MAJOR * 10000)\n#endif\n";
}

// An environment variable for as long as this lives.
class Variable {
 public:
  Variable(std::string name, const std::string& value) : name_(std::move(name)) {
    if (const char* old = std::getenv(name_.c_str())) old_ = old;
    setenv(name_.c_str(), value.c_str(), 1);
  }
  ~Variable() { old_ ? setenv(name_.c_str(), old_->c_str(), 1) : unsetenv(name_.c_str()); }

 private:
  std::string name_;
  std::optional<std::string> old_;
};

class CudaLibrary : public testing::Test {
 protected:
  void SetUp() override {
    if (some_library().empty()) GTEST_SKIP() << "libm is linked statically here";
    for (const char* root : {"old", "new"}) {
      fs::create_directories(folder_ / root / "lib");
      fs::copy_file(some_library(), folder_ / root / "lib" / "libprobe.so.9");
    }
    write_header(folder_ / "old", 9, 14, 0);
    write_header(folder_ / "new", 9, 19, 1);
  }
  Library open(const std::string& newest) {
    return Library({.what = "probe", .names = {"libprobe.so.9"}, .install = "make it", .newest = newest});
  }

  test::TempFolder temporary_;
  fs::path folder_ = temporary_.path("root");
};

TEST_F(CudaLibrary, VersionsAreReadFromNamesAndHeaders) {
  EXPECT_EQ(library_version(folder_ / "old" / "lib" / "libprobe.so.9", "probe"), 9'014'000);
  EXPECT_EQ(library_version(folder_ / "new" / "lib" / "libprobe.so.9", "probe"), 9'019'001);
  EXPECT_EQ(library_version(folder_ / "new" / "lib" / "libprobe.so.9", "other"), 0);
  fs::rename(folder_ / "old" / "lib" / "libprobe.so.9", folder_ / "old" / "lib" / "libprobe.so.9.7.12");
  fs::create_symlink("libprobe.so.9.7.12", folder_ / "old" / "lib" / "libprobe.so.9");
  EXPECT_EQ(library_version(folder_ / "old" / "lib" / "libprobe.so.9", "probe"), 9'007'012);
  EXPECT_EQ(library_version(folder_ / "none" / "libprobe.so.9", "probe"), 0);
}

TEST_F(CudaLibrary, TheNewestIsTakenUnlessAFolderIsNamed) {
  Variable home("CUDA_HOME", (folder_ / "old").string()), path("CUDA_PATH", (folder_ / "new").string());
  EXPECT_EQ(open("").file(), (folder_ / "old" / "lib" / "libprobe.so.9").string());
  EXPECT_EQ(open("probe").file(), (folder_ / "new" / "lib" / "libprobe.so.9").string());
  Variable named("KINORA_CUDA_PATH", (folder_ / "old").string());
  EXPECT_EQ(open("probe").file(), (folder_ / "old" / "lib" / "libprobe.so.9").string());
}

TEST_F(CudaLibrary, AMissingOneIsNamedWithWhereItWasLookedFor) {
  Variable home("CUDA_HOME", (folder_ / "old").string());
  fs::remove(folder_ / "old" / "lib" / "libprobe.so.9");
  try {
    open("probe");
    FAIL() << "it was found";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::resource);
    EXPECT_NE(std::string(e.what()).find("probe was not found: looked for libprobe.so.9"), std::string::npos)
        << e.what();
    EXPECT_NE(std::string(e.what()).find((folder_ / "old" / "lib").string()), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("make it"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace kinora::cuda
