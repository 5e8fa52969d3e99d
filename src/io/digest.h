// SHA-256 of a file's bytes, and git's name of a blob: SHA-1 of "blob <size>\0" and the bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kinora {

class Digest {
 public:
  static Digest sha256();
  static Digest git_blob(uint64_t size);

  void update(const void* data, size_t size);
  std::string hex();  // lower case; ends the digest

 private:
  struct State;
  explicit Digest(const char* algorithm);
  std::shared_ptr<State> state_;
};

// Of a whole file, read in pieces. `git` asks for git's blob name. Throws Error(io).
std::string digest_of_file(const std::string& path, bool git = false);

}  // namespace kinora
