// What is in the cache, by the rules of Hugging Face's own scanner; removing it.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "core/error.h"
#include "io/file.h"
#include "io/hub_cache.h"

namespace kinora::hub {
namespace {

namespace fs = std::filesystem;

uint64_t size_of(const fs::path& path) {
  std::error_code error;
  uint64_t size = fs::file_size(path, error);
  return error ? 0 : size;
}

bool ignored_name(const fs::path& path) { return path.filename() == ".DS_Store"; }

std::vector<fs::directory_entry> entries_of(const fs::path& folder) {
  std::vector<fs::directory_entry> entries;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (!ignored_name(at->path())) entries.push_back(*at);
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

// Every entry below that is no folder, not going through links to folders.
std::vector<fs::path> leaves_of(const fs::path& folder) {
  std::vector<fs::path> leaves;
  std::error_code error, unreadable;
  for (fs::recursive_directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    if (!fs::is_directory(at->path(), unreadable) && !ignored_name(at->path())) leaves.push_back(at->path());
  }
  std::sort(leaves.begin(), leaves.end());
  return leaves;
}

CachedRevision scan_revision(const fs::path& folder) {
  CachedRevision revision;
  revision.commit = folder.filename();
  std::set<std::string> counted;
  for (const fs::path& path : leaves_of(folder)) {
    CachedFile file;
    file.path = path.lexically_relative(folder);
    std::error_code error;
    fs::path target = fs::read_symlink(path, error);
    // The first link only: a blob may itself lead into the shared store.
    file.blob = (error ? path : (path.parent_path() / target).lexically_normal()).string();
    file.dangling = !fs::exists(path, error);
    file.size = file.dangling ? 0 : size_of(path);
    if (counted.insert(file.blob).second) revision.bytes += file.size;
    revision.files.push_back(std::move(file));
  }
  return revision;
}

std::map<std::string, std::vector<std::string>> scan_refs(const fs::path& folder) {
  std::map<std::string, std::vector<std::string>> refs;
  for (const fs::path& path : leaves_of(folder)) {
    std::string commit;
    try {
      commit = read_file(path.string(), 4096);
    } catch (const Error&) {
    }
    refs[commit].push_back(path.lexically_relative(folder).string());
  }
  return refs;
}

CachedRepository scan_repository(const fs::path& folder, const std::string& id) {
  CachedRepository repository;
  repository.id = id;
  repository.folder = folder.string();
  std::error_code error;
  auto trouble = [&](const std::string& what) {
    if (repository.problem.empty()) repository.problem = what;
  };
  if (!fs::is_directory(folder, error)) trouble("it is no folder");
  if (!fs::is_directory(folder / "snapshots", error)) trouble("it has no snapshots folder");
  if (fs::is_regular_file(folder / "refs", error)) trouble("refs is a file");
  auto refs = scan_refs(folder / "refs");
  std::set<std::string> counted;
  for (const fs::directory_entry& entry : entries_of(folder / "snapshots")) {
    if (!entry.is_directory(error)) {
      trouble("snapshots holds the file " + entry.path().filename().string());
      continue;
    }
    CachedRevision revision = scan_revision(entry.path());
    if (auto found = refs.find(revision.commit); found != refs.end()) {
      revision.refs = found->second;
      refs.erase(found);
    }
    for (const CachedFile& file : revision.files) {
      if (file.dangling) trouble(file.path + " of " + revision.commit.substr(0, 8) + " leads to a blob that is gone");
      if (counted.insert(file.blob).second) repository.bytes += file.size;
    }
    repository.revisions.push_back(std::move(revision));
  }
  for (const auto& [commit, names] : refs) trouble("refs/" + names[0] + " names a commit that is not there");
  for (const fs::directory_entry& entry : entries_of(folder / "blobs")) {
    if (entry.path().extension() == ".incomplete") repository.partial_bytes += size_of(entry.path());
  }
  return repository;
}

// Moved out of the way in one step, so that being killed leaves no half of it behind, then deleted; links in it go,
// what they lead to stays.
void remove_tree(const fs::path& path, const std::string& staging) {
  std::error_code error;
  if (fs::symlink_status(path, error).type() == fs::file_type::not_found) return;
  fs::create_directories(staging, error);
  std::string aside = staging + "/" + std::to_string(::getpid()) + "-" + path.filename().string() + ".old";
  fs::remove_all(aside, error);
  if (::rename(path.c_str(), aside.c_str()) != 0)
    fail(ErrorKind::io, "cannot remove " + path.string() + ": " + std::strerror(errno));
  fs::remove_all(aside, error);
  if (error) fail(ErrorKind::io, "cannot remove " + aside + ": " + error.message());
}

}  // namespace

void remove_leftovers(const std::string& staging) {
  std::error_code error;
  for (const fs::directory_entry& entry : entries_of(staging)) {
    if (entry.path().extension() == ".old") fs::remove_all(entry.path(), error);
  }
}

std::vector<CachedRepository> scan_cache(const std::string& root) {
  std::vector<CachedRepository> repositories;
  for (const fs::directory_entry& entry : entries_of(root)) {
    std::string name = entry.path().filename(), id;
    if (!name.starts_with("models--")) continue;
    id = name.substr(8);
    for (size_t at; (at = id.find("--")) != std::string::npos;) id.replace(at, 2, "/");
    if (valid_repository(id)) repositories.push_back(scan_repository(entry.path(), id));
  }
  return repositories;
}

uint64_t remove_revision(const std::string& root, const CachedRepository& repository, const std::string& commit,
                         bool symlinks) {
  RepositoryCache cache(root, repository.id, symlinks);
  if (cache.busy()) fail(ErrorKind::io, repository.id + " is being downloaded by another process; nothing was removed");
  fs::path folder = repository.folder;
  std::string staging = root + "/.locks/" + folder.filename().string();
  remove_leftovers(staging);
  std::set<std::string> going, staying, shared;
  const CachedRevision* revision = nullptr;
  for (const CachedRevision& r : repository.revisions) {
    if (r.commit == commit) revision = &r;
    for (const CachedFile& file : r.files) (r.commit == commit || commit.empty() ? going : staying).insert(file.blob);
  }
  bool whole = commit.empty() || (revision && repository.revisions.size() == 1);
  if (!whole && !revision) fail(ErrorKind::input, repository.id + " has no commit " + commit + " in the cache");
  if (whole) {
    for (const fs::directory_entry& entry : entries_of(folder / "blobs")) going.insert(entry.path().string());
  }
  uint64_t freed = 0;
  std::error_code error;
  for (const std::string& blob : going) {
    if (staying.count(blob)) continue;
    if (auto file = shared_store_file(root, blob)) shared.insert(*file);
    bool ours = blob.starts_with(folder.string() + "/");
    if (ours && fs::symlink_status(blob, error).type() == fs::file_type::regular) freed += size_of(blob);
  }
  if (whole) {
    if (fs::is_symlink(folder, error)) freed = 0;
    remove_tree(folder, staging);
  } else {  // references first, blobs last: no moment leaves a name that leads nowhere
    for (const std::string& ref : revision->refs) fs::remove(folder / "refs" / ref, error);
    remove_tree(folder / "snapshots" / commit, staging);
    remove_tree(folder / ".no_exist" / commit, staging);
    fs::remove(folder / "trees" / (commit + ".json"), error);
    for (const std::string& blob : going) {
      if (!staying.count(blob) && fs::path(blob).parent_path() == folder / "blobs") fs::remove(blob, error);
    }
  }
  for (const std::string& file : shared) freed += sweep_shared_store(root, file);
  return freed;
}

void remove_blob(const CachedRepository& repository, const std::string& blob) {
  std::error_code error;
  fs::path folder = repository.folder;
  for (const CachedRevision& revision : repository.revisions) {
    for (const CachedFile& file : revision.files) {
      if (file.blob == blob) fs::remove(folder / "snapshots" / revision.commit / file.path, error);
    }
  }
  if (fs::path(blob).parent_path() == folder / "blobs") fs::remove(blob, error);
}

}  // namespace kinora::hub
