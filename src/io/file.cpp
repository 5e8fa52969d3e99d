#include "io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/error.h"

namespace kinora {
namespace {

// Not to block on a pipe: what is no regular file is refused once it is open.
constexpr int kReading = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

std::string reason() { return std::strerror(errno); }

// Closes on every way out.
struct Descriptor {
  int fd;
  explicit Descriptor(int descriptor) : fd(descriptor) {}
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

size_t regular_size(int fd, const std::string& path) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) fail(ErrorKind::io, "cannot read " + path + ": " + reason());
  if (!S_ISREG(info.st_mode)) fail(ErrorKind::io, "cannot read " + path + ": it is not a regular file");
  return static_cast<size_t>(info.st_size);
}

std::string temporary_name(const std::string& path) {
  std::filesystem::path target(path);
  return (target.parent_path() / ("." + target.filename().string() + "." + std::to_string(::getpid()) + ".tmp"))
      .string();
}

[[noreturn]] void refuse(const std::string& path) { fail(ErrorKind::io, "cannot write " + path + ": " + reason()); }

void flush(int fd, const std::string& path) {
  if (::fsync(fd) != 0 && errno != EINVAL && errno != EROFS) refuse(path);
}

void move_into_place(const std::string& temporary, const std::string& path) {
  if (::rename(temporary.c_str(), path.c_str()) != 0) refuse(path);
}

std::string descriptor_path(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

// A file without a name, which is gone when the program is killed; -1 where the system has none.
int open_nameless(const std::string& path) {
  if (::access("/proc/self/fd", X_OK) != 0) return -1;
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  return ::open(folder.empty() ? "." : folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
}

void give_name(int fd, const std::string& name, const std::string& path) {
  ::unlink(name.c_str());  // left by a killed process of the same number
  if (::linkat(AT_FDCWD, descriptor_path(fd).c_str(), AT_FDCWD, name.c_str(), AT_SYMLINK_FOLLOW) != 0) refuse(path);
}

}  // namespace

TemporaryFile::TemporaryFile(const std::string& path, bool many) : path_(path), name_(temporary_name(path)) {
  if (!many) nameless_ = open_nameless(path);
  if (nameless_ >= 0) {
    name_ = descriptor_path(nameless_);
    return;
  }
  Descriptor file(::open(name_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  if (file.fd < 0) refuse(path);
}

TemporaryFile::~TemporaryFile() {
  if (nameless_ >= 0) {
    ::close(nameless_);
  } else if (!name_.empty()) {
    ::unlink(name_.c_str());
  }
}

void TemporaryFile::write(std::string_view bytes) {
  Descriptor file(::open(name_.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
  if (file.fd < 0) refuse(path_);
  write_all(file.fd, bytes.data(), bytes.size(), path_);
}

void TemporaryFile::commit() {
  Descriptor file(::open(name_.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.fd < 0) refuse(path_);
  flush(file.fd, path_);
  if (nameless_ >= 0) {
    std::string name = temporary_name(path_);
    give_name(nameless_, name, path_);
    ::close(std::exchange(nameless_, -1));
    name_ = name;  // goes away with the object if it cannot be moved
  }
  move_into_place(name_, path_);
  name_.clear();
}

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
  Descriptor file(::open(path.c_str(), kReading));
  if (file.fd < 0) fail(ErrorKind::io, "cannot open " + path + ": " + reason());
  size_t size = regular_size(file.fd, path);
  if (size == 0) return std::shared_ptr<MappedFile>(new MappedFile(nullptr, 0));
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd, 0);
  if (data == MAP_FAILED) fail(ErrorKind::io, "cannot map " + path + ": " + reason());
  return std::shared_ptr<MappedFile>(new MappedFile(static_cast<std::byte*>(data), size));
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

std::string read_file(const std::string& path, size_t limit) {
  Descriptor file(::open(path.c_str(), kReading));
  if (file.fd < 0) fail(ErrorKind::io, "cannot open " + path + ": " + reason());
  size_t size = regular_size(file.fd, path);
  if (size > limit) {
    fail(ErrorKind::io,
         path + " holds " + std::to_string(size) + " bytes; at most " + std::to_string(limit) + " are read here");
  }
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    ssize_t n = ::read(file.fd, text.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(ErrorKind::io, "cannot read " + path + ": " + reason());
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

void write_all(int fd, const void* data, size_t size, const std::string& path) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    ssize_t n = ::write(fd, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(ErrorKind::io, "cannot write " + path + ": " + reason());
    at += n;
    size -= static_cast<size_t>(n);
  }
}

void write_atomically(const std::string& path, const std::function<void(int fd)>& write) {
  std::string temporary = temporary_name(path);
  Descriptor file(open_nameless(path));
  bool nameless = file.fd >= 0;
  if (!nameless) file.fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (file.fd < 0) refuse(path);
  bool named = !nameless;
  try {
    write(file.fd);
    flush(file.fd, path);
    if (nameless) {
      give_name(file.fd, temporary, path);
      named = true;
    }
    move_into_place(temporary, path);
  } catch (...) {
    if (named) ::unlink(temporary.c_str());
    throw;
  }
}

void write_atomically(const std::string& path, std::string_view bytes) {
  write_atomically(path, [&](int fd) { write_all(fd, bytes.data(), bytes.size(), path); });
}

}  // namespace kinora
