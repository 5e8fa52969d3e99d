#include "io/hub_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/error.h"
#include "io/file.h"

namespace kinora::hub {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kLargestTree = size_t{64} << 20;
constexpr char kCacheTag[] =
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# This file is a cache directory tag created by huggingface_hub.\n"
    "# For information about cache directory tags, see:\n"
    "#\thttps://bford.info/cachedir/\n";

[[noreturn]] void refuse(const std::string& what, const std::string& path) {
  fail(ErrorKind::io, "cannot " + what + " " + path + ": " + std::strerror(errno));
}

bool is_hex(const std::string& text, size_t digits) {
  return text.size() == digits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::vector<std::string> split(const std::string& path) {
  std::vector<std::string> parts{""};
  for (char c : path) {
    if (c == '/') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// Makes `relative` below `base`, refusing to go through a link: only folders of our own making are written into.
void make_folders(const std::string& base, const std::string& relative) {
  std::string path = base;
  for (const std::string& part : split(relative)) {
    if (part.empty()) continue;
    path += "/" + part;
    if (::mkdir(path.c_str(), 0777) == 0) continue;
    if (errno != EEXIST) refuse("create", path);
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode))
      fail(ErrorKind::io, path + " is no folder; remove it, or the whole model with kinora models rm");
  }
}

void create_folders(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) fail(ErrorKind::io, "cannot create " + path + ": " + error.message());
}

// Names that no other process or thread uses.
std::string unique_suffix() {
  static std::atomic<uint64_t> count{0};
  return std::to_string(::getpid()) + "-" + std::to_string(count++);
}

// Written beside the locks, where no scanner looks, and moved to its place when whole.
void place(const std::string& staging, const std::string& target, std::string_view bytes) {
  std::string temporary = staging + "/" + unique_suffix() + ".tmp";
  int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
  if (fd < 0) refuse("write", temporary);
  try {
    write_all(fd, bytes.data(), bytes.size(), target);
    ::close(fd);
  } catch (...) {
    ::close(fd);
    ::unlink(temporary.c_str());
    throw;
  }
  if (::rename(temporary.c_str(), target.c_str()) != 0) {
    int reason = errno;
    ::unlink(temporary.c_str());
    errno = reason;
    refuse("write", target);
  }
}

}  // namespace

bool valid_repository(const std::string& id) {
  std::vector<std::string> parts = split(id);
  if (parts.size() > 2 || id.find("--") != std::string::npos || id.find("..") != std::string::npos ||
      id.ends_with(".git"))
    return false;
  for (const std::string& part : parts) {
    bool allowed = !part.empty() && part.size() <= 96 &&
                   std::all_of(part.begin(), part.end(), [](char c) { return is_word(c) || c == '-' || c == '.'; });
    if (!allowed || !is_word(part.front()) || !is_word(part.back())) return false;
  }
  return true;
}

bool valid_revision(const std::string& revision) {
  if (revision.empty() || revision.size() > 255 || revision.find("..") != std::string::npos) return false;
  for (const std::string& part : split(revision)) {
    if (part.empty() || part.front() == '.' || part.ends_with(".lock") || part.ends_with(".tmp")) return false;
  }
  return std::all_of(revision.begin(), revision.end(), [](char c) {
    return static_cast<unsigned char>(c) > ' ' && c != 127 && !std::strchr("~^:?*[\\@", c);
  });
}

bool valid_file_path(const std::string& path) {
  std::vector<std::string> parts = split(path);
  if (path.size() > 1024 || parts.size() > 32) return false;
  for (const std::string& part : parts) {
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return false;
    if (part.size() > 1 && part[1] == ':') return false;  // a drive, where there are drives
  }
  for (size_t i = 0; i < path.size(); ++i) {
    auto c = static_cast<unsigned char>(path[i]),
         next = static_cast<unsigned char>(i + 1 < path.size() ? path[i + 1] : 'a');
    if (c < ' ' || c == 127 || c == '\\' || (c == 0xc2 && next < 0xa0)) return false;  // 0xc2: U+0080 to U+009F
  }
  return true;
}

bool valid_etag(const std::string& etag) {
  return !etag.empty() && etag.size() <= 128 && is_word(etag.front()) && !etag.ends_with(".incomplete") &&
         std::all_of(etag.begin(), etag.end(), [](char c) { return is_word(c) || c == '-' || c == '.'; });
}

bool is_commit(const std::string& text) { return is_hex(text, 40); }
bool is_sha256(const std::string& text) { return is_hex(text, 64); }

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

RepositoryCache::RepositoryCache(std::string root, std::string id, bool symlinks)
    : root_(std::move(root)), id_(std::move(id)), symlinks_(symlinks) {
  if (!valid_repository(id_)) fail(ErrorKind::usage, "'" + id_ + "' is no name of a model on the hub (ORG/NAME)");
  name_ = "models--" + id_;
  if (size_t slash = name_.find('/'); slash != std::string::npos) name_.replace(slash, 1, "--");
  folder_ = root_ + "/" + name_;
}

std::string RepositoryCache::snapshot(const std::string& commit) const { return folder_ + "/snapshots/" + commit; }

std::string RepositoryCache::file(const std::string& commit, const std::string& path) const {
  check(is_commit(commit) && valid_file_path(path), "a path in the cache was not checked");
  return snapshot(commit) + "/" + path;
}

std::string RepositoryCache::blob(const std::string& etag) const {
  check(valid_etag(etag), "an ETag was not checked");
  return folder_ + "/blobs/" + etag;
}

std::optional<std::string> RepositoryCache::commit_of(const std::string& revision) const {
  if (is_commit(revision)) return revision;
  std::error_code error;
  std::string path = folder_ + "/refs/" + revision;
  if (!valid_revision(revision) || !fs::is_regular_file(path, error)) return std::nullopt;
  std::string commit = read_file(path, 4096);
  while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back()))) commit.pop_back();
  return is_commit(commit) ? std::optional(commit) : std::nullopt;
}

bool RepositoryCache::has(const std::string& commit, const std::string& path) const {
  std::error_code error;
  return fs::is_regular_file(file(commit, path), error);
}

bool RepositoryCache::known_absent(const std::string& commit, const std::string& path) const {
  std::error_code error;
  return fs::is_regular_file(folder_ + "/.no_exist/" + commit + "/" + path, error);
}

std::vector<std::string> RepositoryCache::files(const std::string& commit) const {
  std::vector<std::string> paths;
  fs::path root = snapshot(commit);
  std::error_code error;
  for (fs::recursive_directory_iterator at(root, error), end; !error && at != end; at.increment(error)) {
    std::error_code unreadable;
    if (fs::is_regular_file(at->path(), unreadable)) paths.push_back(at->path().lexically_relative(root).string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::optional<std::vector<TreeEntry>> RepositoryCache::read_tree(const std::string& commit) const {
  std::string path = folder_ + "/trees/" + commit + ".json";
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return std::nullopt;
  try {
    Json tree = Json::parse(read_file(path, kLargestTree));
    if (tree.at("format_version") != 1) return std::nullopt;
    std::vector<TreeEntry> entries;
    for (const auto& [name, info] : tree.at("files").items()) {
      TreeEntry entry{name, info.at("size").get<uint64_t>(), info.at("blob_id").get<std::string>(), "", ""};
      if (info.contains("lfs_sha256") && info["lfs_sha256"].is_string()) entry.sha256 = info["lfs_sha256"];
      if (info.contains("xet_hash") && info["xet_hash"].is_string()) entry.xet_hash = info["xet_hash"];
      if (!valid_file_path(name)) return std::nullopt;
      entries.push_back(std::move(entry));
    }
    return entries;
  } catch (const Json::exception&) {  // damaged, or of a later format: as if it were not there
    return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

void RepositoryCache::create(const std::string& commit) {
  std::string staging = root_ + "/.locks/" + name_;
  create_folders(staging);
  remove_leftovers(staging);
  if (::access((root_ + "/CACHEDIR.TAG").c_str(), F_OK) != 0) place(staging, root_ + "/CACHEDIR.TAG", kCacheTag);
  if (::access(folder_.c_str(), F_OK) != 0) {
    // A model's folder without snapshots/ counts as damaged, so it comes into being with it.
    std::string fresh = staging + "/" + unique_suffix() + ".new";
    create_folders(fresh + "/snapshots/" + commit);
    if (::rename(fresh.c_str(), folder_.c_str()) != 0 && errno != EEXIST && errno != ENOTEMPTY)
      refuse("create", folder_);
    std::error_code ignored;
    fs::remove_all(fresh, ignored);
  }
  make_folders(folder_, "snapshots/" + commit);
  create_folders(folder_ + "/blobs");
}

void RepositoryCache::write_ref(const std::string& revision, const std::string& commit) {
  if (revision == commit || commit_of(revision) == commit) return;
  check(valid_revision(revision) && is_commit(commit), "a revision was not checked");
  std::string path = "refs/" + revision;
  make_folders(folder_, path.substr(0, path.rfind('/')));
  place(root_ + "/.locks/" + name_, folder_ + "/" + path, commit);
}

void RepositoryCache::write_absent(const std::string& commit, const std::string& path) {
  check(valid_file_path(path) && is_commit(commit), "a path in the cache was not checked");
  std::string relative = ".no_exist/" + commit + "/" + path;
  make_folders(folder_, relative.substr(0, relative.rfind('/')));
  if (!known_absent(commit, path)) place(root_ + "/.locks/" + name_, folder_ + "/" + relative, "");
}

void RepositoryCache::write_tree(const std::string& commit, std::vector<TreeEntry> entries) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.path < b.path; });
  Json files = Json::object();
  for (const TreeEntry& entry : entries) {
    Json& info = files[entry.path] = {{"size", entry.size}, {"blob_id", entry.blob_id}};
    if (!entry.sha256.empty()) {
      info["lfs_sha256"] = entry.sha256;
      info["lfs_size"] = entry.size;
    }
    if (!entry.xet_hash.empty()) info["xet_hash"] = entry.xet_hash;
  }
  make_folders(folder_, "trees");
  place(root_ + "/.locks/" + name_, folder_ + "/trees/" + commit + ".json",
        Json{{"format_version", 1}, {"files", files}}.dump(1, ' ', true));
}

void RepositoryCache::link(const std::string& commit, const std::string& path, const std::string& etag) {
  std::string pointer = file(commit, path), source = blob(etag), up = "../../";
  size_t slash = path.rfind('/');
  make_folders(folder_, "snapshots/" + commit + "/" + (slash == std::string::npos ? "" : path.substr(0, slash)));
  for (char c : path) up += c == '/' ? "../" : "";
  std::string target = up + "blobs/" + etag;
  for (int attempt = 0; symlinks_ && attempt < 3; ++attempt) {
    if (::symlink(target.c_str(), pointer.c_str()) == 0) return;
    if (errno == EPERM || errno == EOPNOTSUPP || errno == ENOSYS) break;  // no links on this file system
    if (errno != EEXIST) refuse("create", pointer);
    std::error_code error;
    if (fs::read_symlink(pointer, error) == target) return;
    if (::unlink(pointer.c_str()) != 0 && errno != ENOENT) refuse("replace", pointer);
  }
  std::error_code error;
  if (fs::is_symlink(source, error)) {
    fs::copy_file(source, pointer, fs::copy_options::overwrite_existing, error);
  } else {
    fs::rename(source, pointer, error);
  }
  if (error) fail(ErrorKind::io, "cannot create " + pointer + ": " + error.message());
}

FileLock RepositoryCache::lock(const std::string& etag, const std::atomic<bool>* stop,
                               const std::function<void()>& waiting) {
  std::string path = root_ + "/.locks/" + name_ + "/" + etag + ".lock";
  for (int tries = 0;; ++tries) {
    int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0664);
    if (fd >= 0) {
      (void)::fchmod(fd, 0664);  // another user of a shared cache may wait for it
    } else if (fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW); fd < 0 && errno != ENOENT) {
      refuse("lock", path);
    }
    FileLock lock(fd);
    if (fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) == 0) {
      struct stat ours {
      }, named{};
      if (::fstat(fd, &ours) == 0 && ::stat(path.c_str(), &named) == 0 && ours.st_ino == named.st_ino) return lock;
    } else if (fd >= 0 && errno != EWOULDBLOCK && errno != EACCES && errno != EINTR) {
      return {};
    }
    if (stop && *stop) fail(ErrorKind::cancelled, "stopped");
    if (tries == 4 && waiting) waiting();
    std::this_thread::sleep_for(std::chrono::milliseconds(tries < 20 ? 10 : 100));
  }
}

bool RepositoryCache::busy() const {
  std::error_code error;
  for (fs::directory_iterator at(root_ + "/.locks/" + name_, error), end; !error && at != end; at.increment(error)) {
    if (at->path().extension() != ".lock") continue;
    int fd = ::open(at->path().c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    FileLock probe(fd);
    if (fd >= 0 && ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return true;
  }
  return false;
}

}  // namespace kinora::hub
