#include "cuda/library.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "core/error.h"

namespace kinora::cuda {
namespace {

namespace fs = std::filesystem;

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= list.size();) {
    size_t end = std::min(list.find(':', at), list.size());
    if (end > at) parts.push_back(list.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

// The entries of a folder whose names begin with `prefix`, sorted; none when it cannot be read.
std::vector<fs::path> entries(const fs::path& folder, const std::string& prefix) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with(prefix)) found.push_back(it->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

class Folders {
 public:
  void add(const fs::path& folder) {
    std::error_code error;
    if (folder.empty() || !fs::is_directory(folder, error)) return;
    if (std::find(list_.begin(), list_.end(), folder) == list_.end()) list_.push_back(folder);
  }
  void add_toolkit(const fs::path& root) {
    if (root.empty()) return;
    add(root / "lib64");
    add(root / "lib");
    add(root / "targets" / "x86_64-linux" / "lib");
  }
  // nvidia/*/lib of a folder of Python packages.
  void add_packages(const fs::path& packages) {
    for (const fs::path& package : entries(packages / "nvidia", "")) add(package / "lib");
  }
  // Those of every Python version under a prefix such as /usr/local.
  void add_python(const fs::path& prefix) {
    if (prefix.empty()) return;
    for (const fs::path& version : entries(prefix / "lib", "python3")) {
      add_packages(version / "site-packages");
      add_packages(version / "dist-packages");
    }
  }
  std::vector<fs::path> take() { return std::move(list_); }

 private:
  std::vector<fs::path> list_;
};

void add_python_on_path(Folders& folders) {
  for (const std::string& folder : split(variable("PATH"))) {
    std::error_code error;
    fs::path python = fs::path(folder) / "python3";
    if (!fs::exists(python, error)) continue;
    folders.add_python(fs::path(folder).parent_path());  // a virtual environment's python3 is a link out of it
    fs::path real = fs::canonical(python, error);
    if (!error) folders.add_python(real.parent_path().parent_path());
    return;
  }
}

std::vector<fs::path> own_folders() {
  Folders folders;
  for (const std::string& entry : split(variable("KINORA_CUDA_PATH"))) {
    folders.add(entry);
    folders.add_toolkit(entry);
  }
  return folders.take();
}

std::vector<fs::path> other_folders() {
  Folders folders;
  folders.add_toolkit(variable("CUDA_HOME"));
  folders.add_toolkit(variable("CUDA_PATH"));
  std::vector<fs::path> toolkits = entries("/usr/local", "cuda");
  std::stable_sort(toolkits.begin(), toolkits.end(), [](const fs::path& a, const fs::path& b) {
    return (a.filename() == "cuda") > (b.filename() == "cuda");  // the link that an administrator chose comes first
  });
  for (const fs::path& toolkit : toolkits) folders.add_toolkit(toolkit);
  std::error_code error;
  fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error) folders.add(program.parent_path().parent_path() / "lib");
  folders.add_python(variable("VIRTUAL_ENV"));
  add_python_on_path(folders);
  folders.add_packages("/usr/lib/python3/dist-packages");
  folders.add_python("/usr");
  folders.add_python("/usr/local");
  if (std::string home = variable("HOME"); !home.empty()) folders.add_python(fs::path(home) / ".local");
  return folders.take();
}

// Where the loader looks when nobody tells it otherwise.
std::vector<fs::path> system_folders() {
  Folders folders;
  for (const char* folder : {"/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"})
    folders.add(folder);
  return folders.take();
}

int version_number(const std::vector<int>& parts) {
  return parts.empty()
             ? 0
             : parts[0] * 1'000'000 + (parts.size() > 1 ? parts[1] * 1000 : 0) + (parts.size() > 2 ? parts[2] : 0);
}

struct Opened {
  void* handle = nullptr;
  std::string file;
};

// Symbols become visible to libraries opened later, which look for each other that way. `trouble` gains why a file that
// is there could not be opened.
Opened open_file(const std::string& file, bool must_exist, std::string* trouble) {
  std::error_code error;
  if (must_exist && !fs::exists(file, error)) return {};
  if (void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL)) return {handle, file};
  const char* reason = dlerror();
  if (must_exist && trouble && reason) *trouble += "; " + std::string(reason);
  return {};
}

// The file of the highest version in folders that nobody named; empty when fewer than two say theirs, or somebody named
// one.
std::string newest_file(const std::vector<std::string>& names, const std::string& prefix) {
  std::vector<fs::path> named = own_folders(), rest = system_folders(), others = other_folders();
  for (const std::string& folder : split(variable("LD_LIBRARY_PATH"))) named.push_back(folder);
  rest.insert(rest.end(), others.begin(), others.end());
  std::error_code error;
  std::string best;
  int highest = 0, candidates = 0;
  for (const std::string& name : names) {
    for (const fs::path& folder : named) {
      if (fs::exists(folder / name, error)) return {};
    }
    for (const fs::path& folder : rest) {
      int version = fs::exists(folder / name, error) ? library_version(folder / name, prefix) : 0;
      candidates += version > 0;
      if (version > highest) highest = version, best = (folder / name).string();
    }
  }
  return candidates > 1 ? best : "";
}

Opened open_any(const std::vector<std::string>& names, std::string* trouble) {
  std::vector<fs::path> first = own_folders(), last = other_folders();
  auto search = [&](const std::vector<fs::path>& folders) -> Opened {
    for (const std::string& name : names) {
      for (const fs::path& folder : folders) {
        if (Opened opened = open_file((folder / name).string(), true, trouble); opened.handle) return opened;
      }
    }
    return {};
  };
  if (Opened opened = search(first); opened.handle) return opened;
  for (const std::string& name : names) {
    if (Opened opened = open_file(name, false, trouble); opened.handle) return opened;
  }
  return search(last);
}

}  // namespace

std::vector<fs::path> library_folders() {
  std::vector<fs::path> all = own_folders();
  for (fs::path& folder : other_folders()) {
    if (std::find(all.begin(), all.end(), folder) == all.end()) all.push_back(std::move(folder));
  }
  return all;
}

int library_version(const fs::path& file, const std::string& prefix) {
  std::error_code error;
  std::string name = fs::canonical(file, error).filename().string();
  if (size_t at = name.find(".so."); !error && at != std::string::npos) {
    std::vector<int> parts;
    std::istringstream text(name.substr(at + 4));
    for (std::string part; std::getline(text, part, '.');) parts.push_back(std::atoi(part.c_str()));
    if (parts.size() > 1) return version_number(parts);
  }
  std::vector<int> parts(3, 0);
  std::ifstream header(file.parent_path().parent_path() / "include" / (prefix + "_version.h"));
  for (std::string define, macro; header >> define;) {
    if (define != "#define" || !(header >> macro)) continue;
    constexpr std::array kEnds = {"_MAJOR", "_MINOR", "_PATCHLEVEL"};
    for (size_t i = 0; i < kEnds.size(); ++i) {
      if (macro.ends_with(kEnds[i])) header >> parts[i], header.clear();
    }
  }
  return version_number(parts);
}

Library::Library(const Request& request) : request_(request) {
  for (const std::string& name : request.before) open_any({name}, nullptr);
  std::string trouble, newest = request.newest.empty() ? "" : newest_file(request.names, request.newest);
  Opened opened = newest.empty() ? Opened{} : open_file(newest, true, &trouble);
  if (!opened.handle) opened = open_any(request.names, &trouble);
  handle_ = opened.handle;
  file_ = opened.file;
  if (handle_) return;
  std::string names, folders;
  for (const std::string& name : request.names) names += (names.empty() ? "" : " or ") + name;
  for (const fs::path& folder : library_folders()) folders += ", " + folder.string();
  fail(ErrorKind::resource, request.what + " was not found: looked for " + names + " on the loader's path" + folders +
                                trouble + "; " + request.install + ", or set KINORA_CUDA_PATH to its folder");
}

void* Library::find(const char* name) const {
  if (void* symbol = dlsym(handle_, name)) return symbol;
  fail(ErrorKind::resource, request_.what + ": " + file_ + " has no function " + name +
                                "; it is too old or another version: " + request_.install);
}

const Library& cublaslt_library() {
  static const Library library({.what = "cuBLASLt 13",
                                .names = {"libcublasLt.so.13", "libcublasLt.so.12"},
                                .install = "install it with `pip install nvidia-cublas` or the CUDA 13 toolkit"});
  return library;
}

const Library& cudnn_library() {
  static const Library library(
      {.what = "cuDNN 9",
       .names = {"libcudnn.so.9"},
       .install = "install it with `pip install nvidia-cudnn-cu13` or NVIDIA's package libcudnn9-cuda-13",
       .before = {"libcublasLt.so.13", "libnvrtc-builtins.so.13.0", "libnvrtc.so.13"},
       .newest = "cudnn"});  // newer ones have more attention, and a toolkit's or a distribution's is often old
  return library;
}

}  // namespace kinora::cuda
