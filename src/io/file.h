// Files: mapped for reading, written atomically.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace kinora {

// A whole file mapped read-only; shared, so tensors can keep it alive.
class MappedFile {
 public:
  // Throws Error(io) when the file cannot be opened or mapped.
  static std::shared_ptr<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(std::byte* data, size_t size) : data_(data), size_(size) {}
  std::byte* data_;
  size_t size_;
};

// Reads a file of at most `limit` bytes; throws Error(io).
std::string read_file(const std::string& path, size_t limit);

// Calls write(fd) on a new file in the folder of `path`, without a name where the file system can, then moves it to
// `path`; on any error it is removed and `path` is as it was. Throws Error(io).
void write_atomically(const std::string& path, const std::function<void(int fd)>& write);
void write_atomically(const std::string& path, std::string_view bytes);

// A new file that takes its place only when it is complete. Until commit() it has no name in its folder, as above, or a
// temporary one, and goes away with the object. For what must be written by name; `write_atomically` is simpler.
class TemporaryFile {
 public:
  // Creates an empty file; throws Error(io). One of `many` is always given a temporary name, as without it stays open.
  explicit TemporaryFile(const std::string& path, bool many = false);
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::string& name() const { return name_; }  // to be opened by this process
  void write(std::string_view bytes);                // as its whole content; throws Error(io)
  void commit();                                     // to the disk, then to `path`; throws Error(io)

 private:
  std::string path_, name_;
  int nameless_ = -1;  // the descriptor of a file without a name; `name_` leads to it
};

// Writes all bytes; throws Error(io) naming `path`.
void write_all(int fd, const void* data, size_t size, const std::string& path);

}  // namespace kinora
