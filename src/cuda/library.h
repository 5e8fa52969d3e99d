// CUDA's libraries, opened at run time so that the program starts where they are absent.
#pragma once

#include <string>

namespace kinora::cuda {

class Library {
 public:
  // "cuBLASLt" or "cuDNN". Throws Error(resource) that says where it was looked for and what to install.
  static Library open(const std::string& name);
  template <class F>
  F symbol(const char* name) const {
    return reinterpret_cast<F>(find(name));
  }

 private:
  void* find(const char* name) const;  // throws Error(resource) when the library is too old to have it
  std::string name_;
  void* handle_ = nullptr;
};

}  // namespace kinora::cuda
