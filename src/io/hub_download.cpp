#include "io/hub_download.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <thread>

#include "io/digest.h"
#include "io/file.h"
#include "io/hub.h"
#include "io/hub_answers.h"

namespace kinora::hub {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void refuse(const std::string& what, const std::string& path) {
  fail(ErrorKind::io, "cannot " + what + " " + path + ": " + std::strerror(errno));
}

// Bytes so far of a blob, and their digest. What is on disk is always the beginning of the file.
class Partial {
 public:
  Partial(std::string path, uint64_t size, bool git)
      : path_(std::move(path)), size_(size), git_(git), digest_(fresh()) {
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0) refuse("write", path_);
    struct stat info {};
    if (::fstat(fd_, &info) != 0) refuse("read", path_);
    if (static_cast<uint64_t>(info.st_size) > size_) restart();
  }
  ~Partial() {
    if (fd_ >= 0) ::close(fd_);
  }
  Partial(const Partial&) = delete;
  Partial& operator=(const Partial&) = delete;

  // Reads what an earlier download left.
  void take_up(const std::atomic<bool>* stop) {
    std::string block(size_t{1} << 20, '\0');
    for (ssize_t n; (n = ::pread(fd_, block.data(), block.size(), static_cast<off_t>(at_))) != 0;) {
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) refuse("read", path_);
      if (stop && *stop) fail(ErrorKind::cancelled, "stopped");
      digest_.update(block.data(), static_cast<size_t>(n));
      at_ += static_cast<uint64_t>(n);
    }
    if (::lseek(fd_, static_cast<off_t>(at_), SEEK_SET) < 0) refuse("write", path_);
  }
  void restart() {
    if (::ftruncate(fd_, 0) != 0 || ::lseek(fd_, 0, SEEK_SET) < 0) refuse("write", path_);
    at_ = 0;
    digest_ = fresh();
  }
  void append(const char* data, size_t n) {
    write_all(fd_, data, n, path_);
    digest_.update(data, n);
    at_ += n;
  }
  std::string hash() { return digest_.hex(); }
  void discard() { ::unlink(path_.c_str()); }
  void finish(const std::string& blob) {
    if (::fsync(fd_) != 0 && errno != EINVAL && errno != EROFS) refuse("write", path_);
    if (::rename(path_.c_str(), blob.c_str()) != 0) refuse("write", blob);
  }
  uint64_t at() const { return at_; }

 private:
  Digest fresh() const { return git_ ? Digest::git_blob(size_) : Digest::sha256(); }
  std::string path_;
  uint64_t size_, at_ = 0;
  bool git_;
  Digest digest_;
  int fd_ = -1;
};

// What the hub says of one file before it is fetched.
struct Announcement {
  std::string etag, hash;  // hash: SHA-256 or git's, to be checked; empty when there is none
};

Announcement ask(Http& http, const Settings& settings, RepositoryCache& cache, const std::string& commit,
                 const TreeEntry& entry) {
  std::string what = cache.id() + "/" + entry.path;
  Response response = http.head(resolve_url(settings, cache.id(), commit, entry.path));
  if (response.status >= 400) {
    bool absent = response.header("x-error-code") == "EntryNotFound" && response.header("x-repo-commit") == commit;
    if (absent) cache.write_absent(commit, entry.path);
    throw refusal(response, what);
  }
  auto lies = [&](const std::string& how) {
    fail(ErrorKind::io, what + ": " + how + "; does HF_ENDPOINT name a hub, or does a proxy change its answers?");
  };
  if (response.header("x-repo-commit") != commit) lies("the answer is not for commit " + commit.substr(0, 8));
  std::string linked = response.header("x-linked-etag"), size = response.header("x-linked-size");
  Announcement said{normalized_etag(linked.empty() ? response.header("etag") : linked), ""};
  if (!valid_etag(said.etag)) lies("the answer has no usable ETag");
  if (size.empty() && response.status == 200) size = response.header("content-length");
  if (!size.empty() && size != std::to_string(entry.size))
    lies("the hub lists " + std::to_string(entry.size) + " bytes but announces " + size.substr(0, 20));
  if (!entry.sha256.empty() && entry.sha256 != said.etag) lies("the hub lists another hash than it announces");
  if (is_sha256(said.etag) || (is_commit(said.etag) && said.etag == entry.blob_id)) said.hash = said.etag;
  return said;
}

[[noreturn]] void refuse_size(const std::string& what, const std::string& got, uint64_t size) {
  fail(ErrorKind::io, what + ": the server has a file of another size (" + got.substr(0, 60) + ", expected " +
                          std::to_string(size) + " bytes)");
}

// Whether what comes is the rest of the file, or all of it, for which `partial` then starts over.
void check_answer(const Response& response, const std::string& what, Partial& partial, uint64_t size) {
  std::string range = response.header("content-range"), length = response.header("content-length"),
              coding = response.header("content-encoding");
  if (!coding.empty() && coding != "identity")
    fail(ErrorKind::io, what + ": the server compresses it though asked not to");
  if (response.status == 206) {
    if (!range.starts_with("bytes " + std::to_string(partial.at()) + "-"))
      throw TransferError(ErrorKind::io, what + ": the server sends another part than asked for", true);
    if (!range.ends_with("/" + std::to_string(size)) && !range.ends_with("/*")) refuse_size(what, range, size);
    return;
  }
  if (!length.empty() && length != std::to_string(size)) refuse_size(what, length + " bytes", size);
  if (partial.at() > 0) partial.restart();
}

// Gets the bytes from `partial.at()` on, as often as it takes.
void receive(Http& http, const std::string& url, const std::string& what, Partial& partial, uint64_t size,
             const FetchHooks& hooks) {
  Http::Begin begin = [&](const Response& response) { check_answer(response, what, partial, size); };
  Http::Sink sink = [&](const char* data, size_t n) {
    if (n > size - partial.at())
      fail(ErrorKind::io, what + ": the server sends more than the " + std::to_string(size) + " bytes it announced");
    partial.append(data, n);
    if (hooks.moved) hooks.moved(partial.at());
  };
  bool started_over = false;
  for (int failures = 0; partial.at() < size;) {
    uint64_t before = partial.at();
    try {
      Response response = http.stream(url, before, begin, sink);
      std::string range = response.header("content-range");
      if (response.status == 416 && range.starts_with("bytes */") && range != "bytes */" + std::to_string(size)) {
        refuse_size(what, range, size);
      } else if (response.status == 416 && before > 0 && !started_over) {
        started_over = true;
        partial.restart();
      } else if (response.status / 100 != 2) {
        throw refusal(response, what);
      } else if (partial.at() < size) {
        throw TransferError(ErrorKind::io, what + ": the connection ended early", true);
      }
    } catch (const TransferError& error) {
      if (partial.at() > before) failures = 0;
      std::string here = " (" + std::to_string(partial.at()) + " of " + std::to_string(size) + " bytes are here)";
      http.pause(TransferError(error.kind(), error.what() + here, error.retry, error.wait), failures++);
    }
  }
}

void download(Http& http, const std::string& url, const std::string& what, const Announcement& said,
              const TreeEntry& entry, const std::string& partial_path, const std::string& blob,
              const std::atomic<bool>* stop, const FetchHooks& hooks) {
  Partial partial(partial_path, entry.size, is_commit(said.hash));
  partial.take_up(stop);
  if (hooks.moved) hooks.moved(partial.at());
  for (bool resumed = partial.at() > 0;; resumed = false) {
    receive(http, url, what, partial, entry.size, hooks);
    if (said.hash.empty() || partial.hash() == said.hash) break;
    if (!resumed) {
      partial.discard();
      fail(ErrorKind::model,
           what + " arrived with other bytes than the hub announced (its hash differs); they were discarded");
    }
    partial.restart();  // what was there before may have been damaged
  }
  partial.finish(blob);
}

// Room for the bytes to come, before the first is fetched.
void check_space(const std::string& folder, uint64_t bytes) {
  fs::path place = folder;
  std::error_code error;
  while (!fs::exists(place, error) && place.has_parent_path() && place != place.parent_path())
    place = place.parent_path();
  struct statvfs info {};
  if (bytes == 0 || ::statvfs(place.c_str(), &info) != 0) return;
  uint64_t free = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (free >= bytes) return;
  auto mb = [](uint64_t n) { return std::to_string(n / 1'000'000) + " MB"; };
  fail(ErrorKind::io, "the download needs " + mb(bytes) + " but " + place.string() + " has " + mb(free) +
                          " free; make room, or set HF_HOME to a folder on another disk");
}

bool has_all_files(const RepositoryCache& cache, const Plan& plan) {
  return std::all_of(plan.files.begin(), plan.files.end(),
                     [&](const PlannedFile& file) { return file.cached && cache.has(plan.commit, file.entry.path); });
}

// What the cache keeps of a revision besides its files.
void write_records(RepositoryCache& cache, const Plan& plan) {
  cache.create(plan.commit);
  if (!cache.read_tree(plan.commit)) cache.write_tree(plan.commit, plan.tree);
  cache.write_ref(plan.name.revision, plan.commit);
  for (const std::string& path : plan.absent) cache.write_absent(plan.commit, path);
}

// Indices, so that none of the large files is left alone at the end.
std::vector<size_t> largest_first(const std::vector<PlannedFile>& files) {
  std::vector<size_t> order(files.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return files[a].entry.size > files[b].entry.size; });
  return order;
}

// Fetches the files of a plan, several at once. The first error, or options.stop, halts all of them.
class ParallelFetch {
 public:
  ParallelFetch(const Settings& settings, const RepositoryCache& cache, const Plan& plan, const PullOptions& options)
      : settings_(settings), cache_(cache), plan_(plan), options_(options), order_(largest_first(plan.files)) {}

  void run() {
    size_t jobs = std::min(order_.size(), static_cast<size_t>(std::max(options_.jobs, 1)));
    running_ = jobs;
    std::vector<std::thread> threads;
    for (size_t i = 0; i < jobs; ++i) threads.emplace_back([this] { work(); });
    wait_until_ended();
    for (std::thread& thread : threads) thread.join();
    if (error_) std::rethrow_exception(error_);
    if (stopped()) fail(ErrorKind::cancelled, "stopped; the next pull goes on from here");
  }

 private:
  // What each thread does: one file after another.
  void work() {
    try {
      Http http(settings_, &halt_);
      for (size_t i; !halt_ && (i = next_++) < order_.size();) fetch(http, order_[i]);
    } catch (...) {
      std::lock_guard guard(mutex_);
      if (!halt_.exchange(true)) error_ = std::current_exception();
    }
    std::lock_guard guard(mutex_);
    --running_;
    ended_.notify_all();
  }

  void fetch(Http& http, size_t file) {
    const TreeEntry& entry = plan_.files[file].entry;
    http.on_notice([=, this](const std::string& why) { tell({Event::retrying, file, 0, why}); });
    tell({Event::begun, file});
    RepositoryCache mine = cache_;
    FetchHooks hooks{.moved =
                         [&](uint64_t bytes) {
                           tell({Event::moved, file, bytes});
                         },
                     .waiting =
                         [&] {
                           tell({Event::waiting, file});
                         }};
    fetch_file(http, settings_, mine, plan_.commit, entry, options_.force, &halt_, hooks);
    tell({Event::done, file, entry.size});
  }

  void tell(const Event& event) {
    std::lock_guard guard(mutex_);
    if (options_.on_event) options_.on_event(event);
  }

  void wait_until_ended() {
    std::unique_lock guard(mutex_);
    while (running_ > 0) {
      ended_.wait_for(guard, std::chrono::milliseconds(20));
      if (stopped()) halt_ = true;
    }
  }

  bool stopped() const { return options_.stop && *options_.stop; }

  const Settings& settings_;
  const RepositoryCache& cache_;
  const Plan& plan_;
  const PullOptions& options_;
  const std::vector<size_t> order_;
  std::atomic<bool> halt_{false};
  std::atomic<size_t> next_{0};  // in order_
  std::mutex mutex_;             // of all below, and one event at a time
  std::condition_variable ended_;
  size_t running_ = 0;
  std::exception_ptr error_;
};

}  // namespace

std::string resolve_url(const Settings& settings, const std::string& repository, const std::string& commit,
                        const std::string& path) {
  return settings.endpoint + "/" + encode_path(repository) + "/resolve/" + commit + "/" + encode_path(path);
}

void fetch_file(Http& http, const Settings& settings, RepositoryCache& cache, const std::string& commit,
                const TreeEntry& entry, bool force, const std::atomic<bool>* stop, const FetchHooks& hooks) {
  auto whole = [&](const std::string& path) {
    std::error_code error;
    return !force && fs::is_regular_file(path, error) && fs::file_size(path, error) == entry.size;
  };
  if (whole(cache.file(commit, entry.path))) return;
  Announcement said = ask(http, settings, cache, commit, entry);
  FileLock lock = cache.lock(said.etag, stop, hooks.waiting);
  std::string blob = cache.blob(said.etag);
  bool here = whole(blob);
  if (!here && !force && settings.shared_blobs && settings.symlinks)
    here = link_from_shared_store(settings.cache, blob, entry.xet_hash, entry.size);
  if (!here) {
    // Without a lock two processes must not write into one file.
    std::string partial = blob + (lock.held() ? "" : "." + std::to_string(::getpid())) + ".incomplete";
    download(http, resolve_url(settings, cache.id(), commit, entry.path), cache.id() + "/" + entry.path, said, entry,
             partial, blob, stop, hooks);
  }
  cache.link(commit, entry.path, said.etag);
}

std::string Hub::pull(const Plan& plan, const PullOptions& options) const {
  RepositoryCache cache(settings_.cache, plan.name.repository, settings_.symlinks);
  check_space(settings_.cache, options.force ? plan.bytes : plan.to_fetch);
  if (!options.force && has_all_files(cache, plan)) {
    try {
      write_records(cache, plan);
    } catch (const Error&) {  // a cache that is there to be read alone
    }
    return plan.folder;
  }
  write_records(cache, plan);
  ParallelFetch(settings_, cache, plan, options).run();
  return plan.folder;
}

}  // namespace kinora::hub
