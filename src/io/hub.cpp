#include "io/hub.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "core/error.h"
#include "io/config.h"
#include "io/digest.h"
#include "io/file.h"
#include "io/hub_answers.h"
#include "io/hub_download.h"
#include "io/hub_http.h"

namespace kinora::hub {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLargestAnswer = size_t{32} << 20;
constexpr size_t kLargestConfig = size_t{16} << 20;
constexpr size_t kMostFiles = 100'000;
constexpr size_t kMostPages = 1000;

std::vector<TreeEntry> list_files(Http& http, const Settings& settings, const ModelName& name,
                                  const std::string& commit) {
  std::string url =
      settings.endpoint + "/api/models/" + encode_path(name.repository) + "/tree/" + commit + "?recursive=true";
  std::vector<TreeEntry> entries;
  std::set<std::string> seen;
  for (size_t page = 0; !url.empty(); ++page) {
    Response response = http.get(url, kLargestAnswer);
    if (response.status != 200) throw refusal(response, name.text());
    for (TreeEntry& entry : parse_tree(response.body, name.text())) {
      if (!seen.insert(entry.path).second) fail(ErrorKind::io, name.text() + " lists " + entry.path + " twice");
      entries.push_back(std::move(entry));
    }
    if (entries.size() > kMostFiles || page > kMostPages)
      fail(ErrorKind::io, name.text() + " lists more than 100,000 files");
    std::string next = next_page(response.header("link"));
    // The token goes along, so only to the same place.
    if (!next.empty() && !same_authority(url, next))
      fail(ErrorKind::io, name.text() + ": the hub's list of files goes on at another host");
    url = next;
  }
  return entries;
}

std::string resolve_commit(Http& http, const Settings& settings, const ModelName& name) {
  if (is_commit(name.revision)) return name.revision;
  Response response = http.get(
      settings.endpoint + "/api/models/" + encode_path(name.repository) + "/revision/" + encode_part(name.revision),
      kLargestAnswer);
  if (response.status != 200) throw refusal(response, name.text());
  return parse_commit(response.body, name.text());
}

std::string list(const std::vector<std::string>& items) {
  std::string text;
  for (size_t i = 0; i < items.size() && i < 4; ++i) text += (i ? ", " : "") + items[i];
  return text + (items.size() > 4 ? " and more" : "");
}

}  // namespace

std::optional<ModelName> parse_model_name(const std::string& text) {
  size_t at = text.find('@');
  ModelName name{text.substr(0, at), at == std::string::npos ? "main" : text.substr(at + 1)};
  bool two_parts = std::count(name.repository.begin(), name.repository.end(), '/') == 1;
  if (!two_parts || !valid_repository(name.repository) || !valid_revision(name.revision)) return std::nullopt;
  return name;
}

std::string name_of_folder(const std::string& folder) {
  fs::path path = fs::path(folder).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  fs::path snapshots = path.parent_path(), repository = snapshots.parent_path();
  std::string name = repository.filename();
  if (!is_commit(path.filename()) || snapshots.filename() != "snapshots" || !name.starts_with("models--"))
    return folder;
  name = name.substr(8);
  if (size_t at = name.find("--"); at != std::string::npos) name.replace(at, 2, "/");
  return valid_repository(name) ? name + "@" + path.filename().string() : folder;
}

Plan Hub::plan(const ModelName& name, const SelectOptions& select, const PullOptions& options) const {
  if (settings_.offline) fail(ErrorKind::io, name.text() + " cannot be asked for: HF_HUB_OFFLINE is set");
  Http http(settings_, options.stop);
  http.on_notice(options.on_notice);
  RepositoryCache cache(settings_.cache, name.repository, settings_.symlinks);
  Plan plan;
  plan.name = name;
  plan.commit = resolve_commit(http, settings_, name);
  plan.folder = cache.snapshot(plan.commit);
  if (auto known = cache.read_tree(plan.commit)) {
    plan.tree = *known;
  } else {
    plan.tree = list_files(http, settings_, name, plan.commit);
  }
  std::map<std::string, const TreeEntry*> by_path;
  std::vector<std::string> names;
  for (const TreeEntry& entry : plan.tree) {
    by_path[entry.path] = &entry;
    names.push_back(entry.path);
  }
  ReadFile read = [&](const std::string& path) {
    if (cache.has(plan.commit, path)) return read_file(cache.file(plan.commit, path), kLargestConfig);
    Response response = http.get(resolve_url(settings_, name.repository, plan.commit, path), kLargestConfig);
    if (response.status != 200) throw refusal(response, name.repository + "/" + path);
    return response.body;
  };
  Selection selection = select_files(name.repository, names, select, read);
  if (!selection.missing.empty() && select.patterns.empty())
    fail(ErrorKind::input, name.text() + " on the hub lacks " + list(selection.missing));
  for (const std::string& pattern : select.patterns) {
    bool plain = valid_file_path(pattern) && pattern.find_first_of("*?[") == std::string::npos;
    if (plain && !by_path.count(pattern)) plan.absent.push_back(pattern);
  }
  if (selection.files.empty() && plan.absent.empty())
    fail(ErrorKind::input, name.text() + " on the hub lacks " + list(selection.missing));
  plan.left_out = selection.left_out;
  for (const std::string& path : selection.files) {
    PlannedFile file{*by_path.at(path), cache.has(plan.commit, path), 0};
    std::error_code error;
    if (file.cached && fs::file_size(cache.file(plan.commit, path), error) != file.entry.size) file.cached = false;
    if (!file.cached && !file.entry.sha256.empty()) {
      file.cached = fs::file_size(cache.blob(file.entry.sha256), error) == file.entry.size && !error;
      if (uint64_t size = fs::file_size(cache.blob(file.entry.sha256) + ".incomplete", error); !error)
        file.partial = std::min(size, file.entry.size);
    }
    plan.bytes += file.entry.size;
    if (!file.cached) plan.to_fetch += file.entry.size - file.partial;
    plan.files.push_back(std::move(file));
  }
  return plan;
}

std::optional<std::string> Hub::find(const ModelName& name, const SelectOptions& select) const {
  RepositoryCache cache(settings_.cache, name.repository, settings_.symlinks);
  std::optional<std::string> commit = cache.commit_of(name.revision);
  if (!commit) return std::nullopt;
  // What huggingface_hub fetched before it kept lists of files is judged by itself.
  std::vector<std::string> names;
  if (auto tree = cache.read_tree(*commit)) {
    for (const TreeEntry& entry : *tree) names.push_back(entry.path);
  } else {
    names = cache.files(*commit);
  }
  try {
    Selection selection = select_files(name.repository, names, select, [&](const std::string& path) {
      return read_file(cache.file(*commit, path), kLargestConfig);
    });
    bool complete = selection.missing.empty() && !selection.files.empty();
    for (const std::string& path : selection.files) complete = complete && cache.has(*commit, path);
    return complete ? std::optional(cache.snapshot(*commit)) : std::nullopt;
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
    return std::nullopt;  // an index or config that is not there yet, or not whole
  }
}

std::vector<FileCheck> verify_revision(const std::string& root, const CachedRepository& repository,
                                       const CachedRevision& revision, const std::atomic<bool>* stop) {
  RepositoryCache cache(root, repository.id);
  std::map<std::string, TreeEntry> known;
  if (auto tree = cache.read_tree(revision.commit)) {
    for (TreeEntry& entry : *tree) known[entry.path] = std::move(entry);
  }
  std::vector<FileCheck> checks;
  for (const CachedFile& file : revision.files) {
    if (stop && *stop) fail(ErrorKind::cancelled, "stopped");
    std::string name = fs::path(file.blob).filename(),
                path = repository.folder + "/snapshots/" + revision.commit + "/" + file.path;
    auto entry = known.find(file.path);
    // What the hub's list says, else the name of the blob, which is its hash.
    std::string expected = entry == known.end()           ? name
                           : entry->second.sha256.empty() ? entry->second.blob_id
                                                          : entry->second.sha256;
    if (file.dangling) {
      checks.push_back({file.path, FileCheck::missing, "its blob is gone"});
    } else if (entry != known.end() && file.size != entry->second.size) {
      checks.push_back({file.path, FileCheck::damaged,
                        "it has " + std::to_string(file.size) + " bytes, not " + std::to_string(entry->second.size)});
    } else if (!is_sha256(expected) && !is_commit(expected)) {
      checks.push_back({file.path, FileCheck::unknown, "nothing says what its hash should be"});
    } else if (digest_of_file(path, is_commit(expected)) != expected) {
      checks.push_back(
          {file.path, FileCheck::damaged, "its bytes do not have the hash " + expected.substr(0, 12) + "…"});
    } else {
      checks.push_back({file.path, FileCheck::good, ""});
    }
  }
  return checks;
}

}  // namespace kinora::hub
