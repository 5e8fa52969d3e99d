#include "cuda/library.h"

#include <dlfcn.h>

#include "core/error.h"

namespace kinora::cuda {

Library Library::open(const std::string& name) {
  Library library;
  library.name_ = name;
  library.handle_ = dlopen(name == "cuBLASLt" ? "libcublasLt.so.13" : "libcudnn.so.9", RTLD_NOW | RTLD_GLOBAL);
  if (!library.handle_) fail(ErrorKind::resource, name + " was not found");
  return library;
}

void* Library::find(const char* name) const {
  void* symbol = dlsym(handle_, name);
  if (!symbol) fail(ErrorKind::resource, name_ + " has no " + name + "; install a newer one");
  return symbol;
}

}  // namespace kinora::cuda
