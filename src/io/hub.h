// Models from the Hugging Face hub, by name: what a model consists of, fetching it into Hugging Face's own cache, and
// finding it there. hub_settings.h says where, hub_cache.h how it is kept, hub_select.h which files, hub_http.h how
// they are asked for. A program should ignore SIGPIPE meanwhile: servers hang up.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "io/hub_cache.h"
#include "io/hub_select.h"
#include "io/hub_settings.h"

namespace kinora::hub {

struct ModelName {
  std::string repository;  // "ORG/NAME"
  std::string revision;    // branch, tag or commit; "main" when none is given
  std::string text() const { return repository + (revision == "main" ? "" : "@" + revision); }
};

// "ORG/NAME" or "ORG/NAME@REVISION"; nothing for any other text.
std::optional<ModelName> parse_model_name(const std::string& text);
// "ORG/NAME@COMMIT" for a folder of a cache's snapshots, else the folder itself: how a picture's record names its
// model.
std::string name_of_folder(const std::string& folder);

struct PlannedFile {
  TreeEntry entry;
  bool cached = false;
  uint64_t partial = 0;  // bytes that an earlier download left
};

// What a pull would do.
struct Plan {
  ModelName name;
  std::string commit, folder;  // folder: where the snapshot is, or will be
  std::vector<PlannedFile> files;
  std::vector<std::pair<std::string, std::string>> left_out;  // paths and why
  std::vector<TreeEntry> tree;                                // all that the hub has at this commit
  std::vector<std::string> absent;                            // files asked for by name that it has not
  uint64_t bytes = 0, to_fetch = 0;
};

// A step of a pull, for a progress display. Calls come one at a time, from any thread.
struct Event {
  enum Kind { begun, moved, waiting, retrying, done } kind;
  size_t file;         // index into Plan::files
  uint64_t bytes = 0;  // of the file that are here
  std::string note;    // of retrying: why
};

struct PullOptions {
  int jobs = 8;        // files fetched at once
  bool force = false;  // also what is there already
  const std::atomic<bool>* stop = nullptr;
  std::function<void(const Event&)> on_event;
  std::function<void(const std::string&)> on_notice;  // retries of the small requests before the files
};

class Hub {
 public:
  explicit Hub(Settings settings) : settings_(std::move(settings)) {}
  const Settings& settings() const { return settings_; }

  // Asks the hub for the revision's commit and its files. Throws Error(input) for what is not there or not allowed,
  // Error(io) when the hub cannot be reached or HF_HUB_OFFLINE forbids it.
  Plan plan(const ModelName& name, const SelectOptions& select, const PullOptions& options = {}) const;

  // Fetches what is missing, verified by size and hash, and returns the snapshot's folder. Throws Error(io) for the
  // network and the disk (checked for space first), Error(model) for bytes that are not what the hub announced, and
  // Error(cancelled). What has arrived stays, and the next pull goes on from there.
  std::string pull(const Plan& plan, const PullOptions& options = {}) const;

  // The folder of a model that is in the cache with all its files, without asking the hub.
  std::optional<std::string> find(const ModelName& name, const SelectOptions& select) const;

 private:
  Settings settings_;
};

struct FileCheck {
  std::string path;
  enum Result { good, damaged, missing, unknown } result;  // unknown: nothing in the cache says what it should be
  std::string why;
};

// Compares every file of a revision with its hash. `stop` ends it early with Error(cancelled).
std::vector<FileCheck> verify_revision(const std::string& root, const CachedRepository& repository,
                                       const CachedRevision& revision, const std::atomic<bool>* stop = nullptr);

}  // namespace kinora::hub
