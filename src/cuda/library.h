// NVIDIA's libraries, opened when they are first needed, so that the program starts where they are absent.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace kinora::cuda {

// Where libraries are looked for besides the loader's own path, in this order: KINORA_CUDA_PATH (folders separated by
// ':', each itself, its lib64 and its lib), CUDA_HOME and CUDA_PATH, /usr/local/cuda*, ../lib beside the program, and
// the folders of Python's nvidia-* packages: of VIRTUAL_ENV, of the python3 on PATH, of the system and of the user.
// The loader's own path comes after KINORA_CUDA_PATH. Where a Request asks for the newest, it is taken of the system's
// folders and all of these, unless KINORA_CUDA_PATH or LD_LIBRARY_PATH names a folder that has one.
std::vector<std::filesystem::path> library_folders();

class Library {
 public:
  struct Request {
    std::string what;                      // "cuDNN 9"
    std::vector<std::string> names;        // file names, the preferred one first
    std::string install;                   // what to do when there is none
    std::vector<std::string> before = {};  // libraries that it opens by name later: opened first where they are found
    std::string newest = {};               // of several, the one of the highest version: the prefix of the macros in
                                           // PREFIX_version.h, "cudnn"; empty: the first
  };
  // Throws Error(resource) naming what was looked for, where, and what to install.
  explicit Library(const Request& request);

  // Throws Error(resource) when the library, being older, lacks it.
  template <class F>
  F* function(const char* name) const {
    return reinterpret_cast<F*>(find(name));
  }
  const std::string& file() const { return file_; }  // what was opened; a bare name when the loader found it

 private:
  void* find(const char* name) const;
  Request request_;
  std::string file_;
  void* handle_ = nullptr;  // never closed: these libraries leave threads and device state behind
};

// The version of a library file as one number, from its own name (libcudnn.so.9.14.0) or from
// ../include/PREFIX_version.h beside its folder: 9014000. 0 when neither says. Without opening it: two versions of
// cuDNN in one process mix.
int library_version(const std::filesystem::path& file, const std::string& prefix);

// Opened at the first call.
const Library& cudnn_library();
const Library& cublaslt_library();

}  // namespace kinora::cuda
