// The store of bytes that several repositories share: <root>/blobs/<first two digits>/<xet hash>, beside it the list of
// the links to it (.refs) and a lock (.lock). The list is a hint: each line is checked against the disk before it
// counts, and without a readable list nothing is removed.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/error.h"
#include "io/file.h"
#include "io/hub_cache.h"

namespace kinora::hub {
namespace {

namespace fs = std::filesystem;

bool is_plain(const fs::path& path, fs::file_type type) {
  std::error_code error;
  return fs::symlink_status(path, error).type() == type;
}

bool is_store(const fs::path& store) {
  fs::path marker = store / ".huggingface-shared-blobs";
  if (!is_plain(store, fs::file_type::directory) || !is_plain(marker, fs::file_type::regular)) return false;
  try {
    return read_file(marker.string(), 16) == "1\n";
  } catch (const Error&) {
    return false;
  }
}

// Where a link in a repository's blobs/ leads, when that is a place of the store.
std::optional<fs::path> store_target(const std::string& root, const fs::path& blob) {
  std::error_code error;
  fs::path target = fs::read_symlink(blob, error);
  if (error) return std::nullopt;
  fs::path full = (blob.parent_path() / target).lexically_normal();
  fs::path store = (fs::path(root) / "blobs").lexically_normal();
  std::string hash = full.filename().string();
  if (!is_sha256(hash) || full != store / hash.substr(0, 2) / hash) return std::nullopt;
  return full;
}

FileLock lock_store_file(const std::string& file) {
  int fd = ::open((file + ".lock").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  FileLock lock(fd);
  if (fd < 0 || ::flock(fd, LOCK_EX) != 0) return {};
  (void)::fchmod(fd, 0666);
  return lock;
}

// The links that the list names and that lead here; nothing when the list cannot be read.
std::optional<std::set<std::string>> references(const std::string& root, const std::string& file) {
  if (!is_plain(file + ".refs", fs::file_type::regular)) return std::nullopt;
  std::set<std::string> found;
  std::string line;
  for (char c : read_file(file + ".refs", size_t{16} << 20) + "\n") {
    if (c != '\n') {
      line += c;
      continue;
    }
    fs::path relative(line);
    auto parts = std::distance(relative.begin(), relative.end());
    bool sound = parts == 3 && relative.is_relative() && line.find("..") == std::string::npos &&
                 *std::next(relative.begin()) == "blobs";
    if (sound && store_target(root, fs::path(root) / relative) == fs::path(file).lexically_normal()) found.insert(line);
    line.clear();
  }
  return found;
}

}  // namespace

std::optional<std::string> shared_store_file(const std::string& root, const std::string& blob) {
  std::optional<fs::path> target = store_target(root, blob);
  if (!target || !is_store(fs::path(root) / "blobs") || !is_plain(*target, fs::file_type::regular)) return std::nullopt;
  return target->string();
}

bool link_from_shared_store(const std::string& root, const std::string& blob, const std::string& xet_hash,
                            uint64_t size) {
  fs::path store = fs::path(root) / "blobs";
  if (!is_sha256(xet_hash) || !is_store(store)) return false;
  std::string file = (store / xet_hash.substr(0, 2) / xet_hash).string();
  if (!is_plain(file, fs::file_type::regular)) return false;
  FileLock lock = lock_store_file(file);
  std::error_code error;
  bool usable = lock.held() && is_plain(file, fs::file_type::regular) && fs::file_size(file, error) == size &&
                ::access(file.c_str(), R_OK) == 0;
  if (!usable) return false;
  fs::path place(blob);
  std::string temporary =
      (place.parent_path() / ("." + place.filename().string() + "." + std::to_string(::getpid()) + ".shared")).string();
  std::string target = "../../blobs/" + xet_hash.substr(0, 2) + "/" + xet_hash;
  std::string line = place.lexically_relative(root).string() + "\n";
  ::unlink(temporary.c_str());
  if (::symlink(target.c_str(), temporary.c_str()) != 0) return false;
  // The reference is on disk before the link can be seen, so that no sweep takes the file away under it.
  int fd = ::open((file + ".refs").c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
  bool noted =
      fd >= 0 && ::write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size()) && ::fsync(fd) == 0;
  if (fd >= 0) ::close(fd);
  if (noted && ::rename(temporary.c_str(), blob.c_str()) == 0) return true;
  ::unlink(temporary.c_str());
  return false;
}

uint64_t sweep_shared_store(const std::string& root, const std::string& file) {
  if (!is_plain(file, fs::file_type::regular)) return 0;
  FileLock lock = lock_store_file(file);
  if (!lock.held()) return 0;
  try {
    std::optional<std::set<std::string>> used = references(root, file);
    if (!used) return 0;
    if (used->empty()) {
      uint64_t size = fs::file_size(file);
      fs::remove(file);
      fs::remove(file + ".refs");
      return size;
    }
    std::string text;
    for (const std::string& line : *used) text += line + "\n";
    write_atomically(file + ".refs", text);
    fs::permissions(file + ".refs", static_cast<fs::perms>(0666));
  } catch (const std::exception&) {  // what cannot be read or removed stays
  }
  return 0;
}

}  // namespace kinora::hub
