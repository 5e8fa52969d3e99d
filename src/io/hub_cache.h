// Hugging Face's cache folder, byte for byte (https://huggingface.co/docs/huggingface_hub/guides/manage-cache):
//
//   <root>/CACHEDIR.TAG
//   <root>/models--ORG--NAME/blobs/<etag>                      a file's bytes, or a link into the shared store
//                           /refs/<revision>                   a commit, 40 hexadecimal digits
//                           /snapshots/<commit>/<path>         relative link to ../../blobs/<etag>, or a real file
//                           /.no_exist/<commit>/<path>         empty: the hub has no such file
//                           /trees/<commit>.json               what the hub has
//   <root>/.locks/models--ORG--NAME/<etag>.lock                flock while a blob is fetched
//   <root>/blobs/<xx>/<xet hash>[.refs|.lock]                  bytes shared by several repositories, and who links to
//   them
//
// A process may be killed at any moment: every step leaves a folder that this and Hugging Face's own scanner accept.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/hub_settings.h"

namespace kinora::hub {

// A file as the hub's listing names it. Sizes in bytes; hashes in lower-case hexadecimal.
struct TreeEntry {
  std::string path;
  uint64_t size = 0;
  std::string blob_id;   // git's SHA-1 of the file, or of its LFS pointer
  std::string sha256;    // of the file; empty when it is not in LFS
  std::string xet_hash;  // empty when the hub gives none
};

// What may become part of a path: a repository's name, a revision, a file within a repository, an ETag. Each false
// answer means that no path is ever made of it.
bool valid_repository(const std::string& id);  // "ORG/NAME" or "NAME"
bool valid_revision(const std::string& revision);
bool valid_file_path(const std::string& path);
bool valid_etag(const std::string& etag);
bool is_commit(const std::string& text);  // 40 lower-case hexadecimal digits
bool is_sha256(const std::string& text);  // 64 of them

// Held until destroyed; empty when the file system has no locks.
class FileLock {
 public:
  FileLock() = default;
  explicit FileLock(int fd) : fd_(fd) {}
  ~FileLock();
  FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;
  bool held() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

class RepositoryCache {
 public:
  RepositoryCache(std::string root, std::string id, bool symlinks = true);

  const std::string& id() const { return id_; }
  const std::string& folder() const { return folder_; }
  std::string snapshot(const std::string& commit) const;
  std::string file(const std::string& commit, const std::string& path) const;
  std::string blob(const std::string& etag) const;

  // The commit that a revision meant when it was last asked for; the revision itself when it is a commit.
  std::optional<std::string> commit_of(const std::string& revision) const;
  bool has(const std::string& commit, const std::string& path) const;  // a regular file, through links
  bool known_absent(const std::string& commit, const std::string& path) const;
  std::optional<std::vector<TreeEntry>> read_tree(const std::string& commit) const;
  // The files of a snapshot, sorted; dangling links are not among them.
  std::vector<std::string> files(const std::string& commit) const;

  // All of these throw Error(io).
  void create(const std::string& commit);  // the folders, before anything below
  void write_ref(const std::string& revision, const std::string& commit);
  void write_absent(const std::string& commit, const std::string& path);
  void write_tree(const std::string& commit, std::vector<TreeEntry> entries);
  // Makes snapshots/<commit>/<path> stand for blobs/<etag>, which is there.
  void link(const std::string& commit, const std::string& path, const std::string& etag);
  // Waits for whoever fetches this blob; calls `waiting` once when that takes more than a moment. Throws
  // Error(cancelled) when `stop` becomes true.
  FileLock lock(const std::string& etag, const std::atomic<bool>* stop, const std::function<void()>& waiting);
  bool busy() const;  // some process holds one of this repository's locks

 private:
  std::string root_, id_, name_, folder_;
  bool symlinks_;
};

struct CachedFile {
  std::string path, blob;  // within the snapshot; the path of the blob, or of the file itself when it is no link
  uint64_t size = 0;
  bool dangling = false;
};

struct CachedRevision {
  std::string commit;
  std::vector<std::string> refs;
  std::vector<CachedFile> files;
  uint64_t bytes = 0;  // of its files, each blob once
};

struct CachedRepository {
  std::string id, folder;
  std::vector<CachedRevision> revisions;
  uint64_t bytes = 0, partial_bytes = 0;  // of all its files, each blob once; of downloads that were cut
  std::string problem;                    // why Hugging Face's scanner would refuse the folder; empty when it would not
};

std::vector<CachedRepository> scan_cache(const std::string& root);  // the models in it, sorted; empty without a cache

// Removes a revision, or the whole repository when it is empty or the last one, and what in the shared store nothing
// refers to any more. Links are removed, never what they lead to outside. Returns the bytes freed. Throws Error(io)
// when a process is fetching files of it.
uint64_t remove_revision(const std::string& root, const CachedRepository& repository, const std::string& commit,
                         bool symlinks = true);

// Deletes what a removal that was killed left beside the locks of a repository.
void remove_leftovers(const std::string& staging);
// Removes one blob, as CachedFile names it, after every entry of a snapshot that stands for it.
void remove_blob(const CachedRepository& repository, const std::string& blob);

// The shared store. Linking makes blobs/<etag> of a repository a link to the store's file of that hash and size and
// notes the reference; false when there is none, or the store is not Hugging Face's. Sweeping removes a file that
// nothing refers to any more and returns its bytes.
bool link_from_shared_store(const std::string& root, const std::string& blob, const std::string& xet_hash,
                            uint64_t size);
std::optional<std::string> shared_store_file(const std::string& root, const std::string& blob);
uint64_t sweep_shared_store(const std::string& root, const std::string& store_file);

}  // namespace kinora::hub
