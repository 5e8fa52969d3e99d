// kinora pull and kinora models: models from the hub, and those that are here.
#include "io/hub.h"

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <set>

#include "cli.h"
#include "diffusion/video_denoiser.h"
#include "io/config.h"
#include "io/safetensors.h"

namespace kinora::cli {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string human(uint64_t bytes) {
  char text[32];
  double value = static_cast<double>(bytes);
  const char* unit = "B";
  for (const char* next : {"kB", "MB", "GB", "TB"}) {
    if (value < 999.5) break;
    value /= 1000;
    unit = next;
  }
  std::snprintf(text, sizeof text, *unit == 'B' || value >= 99.95 ? "%.0f %s" : "%.1f %s", value, unit);
  return text;
}

// One bar for each file under way and one for all, redrawn on a terminal; elsewhere a line for each file that arrives.
class Progress {
 public:
  Progress(const hub::Plan& plan, const hub::Settings& settings, bool quiet)
      : plan_(plan), here_(plan.files.size()), quiet_(quiet), bars_(isatty(STDERR_FILENO) && settings.progress_bars) {
    for (size_t i = 0; i < here_.size(); ++i)
      begun_with_ += here_[i] = plan.files[i].cached ? plan.files[i].entry.size : plan.files[i].partial;
    arrived_ = begun_with_;
    active_.assign(here_.size(), false);
  }
  ~Progress() { erase(); }

  void on(const hub::Event& event) {
    if (quiet_) return;
    const hub::PlannedFile& file = plan_.files[event.file];
    if (event.kind == hub::Event::moved || event.kind == hub::Event::done) {
      arrived_ += event.bytes - here_[event.file];  // less, after a start from the beginning
      here_[event.file] = event.bytes;
    }
    active_[event.file] = event.kind != hub::Event::done && !file.cached;
    if (event.kind == hub::Event::waiting) say(file.entry.path + ": another process is fetching it");
    if (event.kind == hub::Event::retrying) say(event.note);
    if (event.kind == hub::Event::done && !file.cached) say(file.entry.path + "  " + human(file.entry.size));
    auto now = std::chrono::steady_clock::now();
    if (bars_ && now - drawn_ > std::chrono::milliseconds(100)) {
      drawn_ = now;
      draw(now);
    }
  }

 private:
  void say(const std::string& line) {
    erase();
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  void erase() {
    for (; lines_ > 0; --lines_) std::fputs("\x1b[1A\x1b[2K", stderr);
  }
  void line(const std::string& name, uint64_t done, uint64_t size, int width) {
    auto room = static_cast<size_t>(std::max(16, std::min(50, width - 38)));
    std::string shown = name.size() > room ? "..." + name.substr(name.size() - room + 3) : name;
    size_t filled = size ? static_cast<size_t>(14 * (static_cast<double>(done) / static_cast<double>(size))) : 14;
    std::string bar = std::string(filled, '=') + std::string(14 - filled, ' ');
    std::fprintf(stderr, "%-*s [%s] %s / %s\n", static_cast<int>(room), shown.c_str(), bar.c_str(), human(done).c_str(),
                 human(size).c_str());
    ++lines_;
  }
  void draw(std::chrono::steady_clock::time_point now) {
    winsize window{};
    int width = ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 40 ? window.ws_col : 80;
    erase();
    for (size_t i = 0; i < active_.size(); ++i) {
      if (active_[i]) line(plan_.files[i].entry.path, here_[i], plan_.files[i].entry.size, width);
    }
    double spent = std::chrono::duration<double>(now - start_).count();
    uint64_t arrived = std::min(arrived_, plan_.bytes), fresh = arrived - std::min(arrived, begun_with_);
    std::string total = "all files";
    if (fresh > 0 && spent > 0.5) {
      double rate = static_cast<double>(fresh) / spent;
      auto left = static_cast<uint64_t>(static_cast<double>(plan_.bytes - arrived) / rate);
      total += ", " + human(static_cast<uint64_t>(rate)) + "/s, " + std::to_string(left) + " s left";
    }
    line(total, arrived, plan_.bytes, width);
    std::fflush(stderr);
  }

  const hub::Plan& plan_;
  std::vector<uint64_t> here_;
  std::vector<bool> active_;
  uint64_t arrived_ = 0, begun_with_ = 0;
  bool quiet_, bars_;
  int lines_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), drawn_{};
};

struct PullArguments {
  std::string model;
  hub::SelectOptions select;
  hub::PullOptions options;
  bool dry_run = false, quiet = false;
};

hub::ModelName model_name(const std::string& text) {
  auto name = hub::parse_model_name(text);
  if (!name) fail(ErrorKind::usage, "'" + text + "' is no name of a model on the hub (ORG/NAME or ORG/NAME@REVISION)");
  return *name;
}

hub::PullOptions with_notices(hub::PullOptions options, bool quiet) {
  options.stop = &stop_requested;
  if (!quiet) options.on_notice = [](const std::string& what) { std::fprintf(stderr, "%s\n", what.c_str()); };
  return options;
}

std::string summary(const hub::Plan& plan) {
  size_t files =
      static_cast<size_t>(std::count_if(plan.files.begin(), plan.files.end(), [](const auto& f) { return !f.cached; }));
  std::string text = human(plan.to_fetch) + " in " + std::to_string(files) + (files == 1 ? " file" : " files");
  return plan.to_fetch < plan.bytes ? text + ", of " + human(plan.bytes) : text;
}

std::string fetch(const hub::Hub& hub, const hub::Plan& plan, hub::PullOptions options, bool quiet) {
  Progress progress(plan, hub.settings(), quiet);
  options.on_event = [&](const hub::Event& event) { progress.on(event); };
  return hub.pull(plan, options);
}

int pull(const PullArguments& a) {
  hub::Hub hub(hub::read_settings());
  hub::ModelName name = model_name(a.model);
  if (hub.settings().offline) {  // what is here may be enough
    if (auto folder = hub.find(name, a.select)) return std::printf("%s\n", folder->c_str()), 0;
  }
  hub::PullOptions options = with_notices(a.options, a.quiet);
  hub::Plan plan;
  try {
    plan = hub.plan(name, a.select, options);
  } catch (const Error& error) {  // as huggingface_hub does: without the hub, what is here must do
    auto folder =
        error.kind() == ErrorKind::io && !a.dry_run && !options.force ? hub.find(name, a.select) : std::nullopt;
    if (!folder) throw;
    std::fprintf(stderr, "%s\n%s is complete in the cache; whether it is the latest is not known\n", error.what(),
                 name.text().c_str());
    return std::printf("%s\n", folder->c_str()), 0;
  }
  if (options.force) {
    for (hub::PlannedFile& file : plan.files) file.cached = false;
    plan.to_fetch = plan.bytes;
  }
  if (a.dry_run) {
    std::printf("%s at commit %s: %s to download\n", name.text().c_str(), plan.commit.c_str(), summary(plan).c_str());
    for (const hub::PlannedFile& file : plan.files)
      std::printf("  take   %10s  %s%s\n", human(file.entry.size).c_str(), file.entry.path.c_str(),
                  file.cached    ? "  (is here)"
                  : file.partial ? "  (begun)"
                                 : "");
    for (const auto& [path, why] : plan.left_out)
      std::printf("  leave              %s: %s\n", path.c_str(), why.c_str());
    for (const std::string& path : plan.absent) std::printf("  absent             %s\n", path.c_str());
    return 0;
  }
  if (!a.quiet) std::fprintf(stderr, "%s: %s to download\n", name.text().c_str(), summary(plan).c_str());
  std::string folder = fetch(hub, plan, options, a.quiet);
  if (!plan.absent.empty()) fail(ErrorKind::input, name.text() + ": the hub has no file " + plan.absent[0]);
  std::printf("%s\n", folder.c_str());
  return 0;
}

// What a model's folder says of itself, from its configs and the headers of its weights.
struct Facts {
  std::string type = "?", dtype, state = "ok";
  size_t weights = 0;
};

// The parts of a pipeline's folder, or those of a folder in Open-Sora's layout, which has no index.
std::vector<Weights> parts_of(const fs::path& folder, std::string& type) {
  std::vector<Weights> parts;
  if (has_mmdit(folder, MmditRole::film)) {
    type = "OpenSora";
    parts.push_back(open_mmdit(folder, MmditRole::film).weights);
    parts.push_back(open_weights(folder, "hunyuan_vae"));
    for (const char* encoder : {"t5", "clip"}) parts.push_back(open_weights(folder / encoder, "model"));
    return parts;
  }
  Config index = Config::load((folder / "model_index.json").string());
  type = index.class_name("_class_name");
  std::error_code error;
  for (const std::string& part : index.keys()) {
    if (part[0] == '_' || part.find('/') != std::string::npos || !fs::exists(folder / part / "config.json", error))
      continue;
    std::string base = "model";  // transformers' name for weights, unless there are files by diffusers' name
    for (const fs::directory_entry& entry : fs::directory_iterator(folder / part, error)) {
      if (entry.path().filename().string().starts_with("diffusion_pytorch_model")) base = "diffusion_pytorch_model";
    }
    parts.push_back(open_weights((folder / part).string(), base));
  }
  return parts;
}

Facts facts_of(const fs::path& folder) {
  Facts facts;
  std::map<std::string, size_t> by_type;
  try {
    for (const Weights& weights : parts_of(folder, facts.type)) {
      facts.weights += weights.bytes();
      for (const std::string& name : weights.names()) {
        const Tensor& tensor = *weights.find(name);
        by_type[std::string(dtype_name(tensor.dtype()))] += tensor.bytes();
      }
    }
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
    facts.state = error.kind() == ErrorKind::model ? "damaged" : "incomplete";
  }
  for (const auto& [type, bytes] : by_type) facts.dtype += (facts.dtype.empty() ? "" : ",") + type;
  return facts;
}

Json row_of(const std::string& name, const std::string& commit, const fs::path& folder, uint64_t bytes) {
  Facts facts = facts_of(folder);
  return {{"name", name},       {"commit", commit},     {"folder", folder.string()},      {"bytes", bytes},
          {"type", facts.type}, {"dtype", facts.dtype}, {"weights_bytes", facts.weights}, {"state", facts.state}};
}

uint64_t size_of_folder(const fs::path& folder) {
  uint64_t bytes = 0;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder, error)) {
    uint64_t size = entry.is_regular_file(error) ? entry.file_size(error) : 0;
    bytes += error ? 0 : size;
  }
  return bytes;
}

int list_models(bool as_json) {
  hub::Settings settings = hub::read_settings();
  hub::Hub hub(settings);
  Json rows = Json::array();
  std::error_code error;
  if (std::string beside = models_beside_program(); !beside.empty()) {
    for (const fs::directory_entry& entry : fs::directory_iterator(beside, error)) {
      if (fs::exists(entry.path() / "model_index.json", error) || has_mmdit(entry.path(), MmditRole::film))
        rows.push_back(row_of(entry.path().filename(), "", entry.path(), size_of_folder(entry.path())));
    }
  }
  for (const hub::CachedRepository& repository : hub::scan_cache(settings.cache)) {
    for (const hub::CachedRevision& revision : repository.revisions) {
      std::string name = repository.id;
      bool main = std::find(revision.refs.begin(), revision.refs.end(), "main") != revision.refs.end();
      if (!main) name += "@" + (revision.refs.empty() ? revision.commit.substr(0, 8) : revision.refs[0]);
      rows.push_back(
          row_of(name, revision.commit, fs::path(repository.folder) / "snapshots" / revision.commit, revision.bytes));
      bool pipeline =
          fs::exists(fs::path(repository.folder) / "snapshots" / revision.commit / "model_index.json", error);
      if (!repository.problem.empty())
        rows.back()["state"] = "damaged: " + repository.problem;
      else if (pipeline && rows.back()["state"] == "ok" && !hub.find({repository.id, revision.commit}, {}) &&
               !hub.find({repository.id, revision.commit}, {.variant = "fp16"}) &&
               !hub.find({repository.id, revision.commit}, {.variant = "bf16"}))
        rows.back()["state"] = "incomplete";
      if (repository.partial_bytes) rows.back()["partial_bytes"] = repository.partial_bytes;
    }
  }
  if (as_json) return std::printf("%s\n", rows.dump(1, ' ', true, Json::error_handler_t::replace).c_str()), 0;
  size_t width = 5;
  for (const Json& row : rows) width = std::max(width, row["name"].get<std::string>().size());
  std::printf("%-*s  %9s  %-20s %-10s %9s  %s\n", static_cast<int>(width), "model", "on disk", "type", "dtype",
              "memory", "state");
  for (const Json& row : rows) {
    std::string state = row["state"];
    if (row.contains("partial_bytes")) state += ", " + human(row["partial_bytes"]) + " of a download that was cut";
    std::printf("%-*s  %9s  %-20s %-10s %9s  %s\n", static_cast<int>(width), row["name"].get<std::string>().c_str(),
                human(row["bytes"]).c_str(), row["type"].get<std::string>().c_str(),
                row["dtype"].get<std::string>().c_str(), human(row["weights_bytes"]).c_str(), state.c_str());
  }
  std::printf("cache: %s\nmemory is that of the weights; kinora inspect MODEL adds what each size of picture needs\n",
              settings.cache.c_str());
  return 0;
}

// The revisions of a cached repository that "ORG/NAME[@REVISION]" means; a commit may be shortened to 7 digits.
std::vector<hub::CachedRevision> matching(const hub::CachedRepository& repository, const std::string& revision) {
  std::vector<hub::CachedRevision> found;
  for (const hub::CachedRevision& r : repository.revisions) {
    bool is_ref = std::find(r.refs.begin(), r.refs.end(), revision) != r.refs.end();
    if (revision.empty() || is_ref || (revision.size() >= 7 && r.commit.starts_with(revision))) found.push_back(r);
  }
  return found;
}

struct Target {
  hub::CachedRepository repository;
  std::vector<hub::CachedRevision> revisions;
  std::string revision;  // as asked for; empty: all
};

std::vector<Target> targets_of(const hub::Settings& settings, const std::vector<std::string>& names) {
  std::vector<Target> targets;
  std::vector<hub::CachedRepository> cached = hub::scan_cache(settings.cache);
  for (const std::string& text : names) {
    size_t at = text.find('@');
    std::string id = text.substr(0, at);
    auto found = std::find_if(cached.begin(), cached.end(), [&](const auto& r) { return r.id == id; });
    if (found == cached.end()) fail(ErrorKind::input, id + " is not in the cache " + settings.cache);
    std::string revision = at == std::string::npos ? "" : text.substr(at + 1);
    targets.push_back({*found, matching(*found, revision), revision});
    if (!revision.empty() && targets.back().revisions.size() > 1)
      fail(ErrorKind::usage, text + " may be one of several revisions; give more digits of the commit");
    if (!revision.empty() && targets.back().revisions.empty())
      fail(ErrorKind::input, id + " has no revision " + revision + " in the cache");
  }
  return targets;
}

bool confirmed(const std::string& question, bool yes, const std::string& otherwise) {
  if (yes) return true;
  if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO)) fail(ErrorKind::usage, otherwise);
  std::fprintf(stderr, "%s [y/N] ", question.c_str());
  for (pollfd input{STDIN_FILENO, POLLIN, 0}; ::poll(&input, 1, 100) == 0;) {
    if (!stop_requested) continue;
    std::fprintf(stderr, "\n");
    return false;
  }
  std::string answer;
  return std::getline(std::cin, answer) && (answer == "y" || answer == "Y" || answer == "yes");
}

int remove_models(const std::vector<std::string>& names, bool yes) {
  hub::Settings settings = hub::read_settings();
  targets_of(settings, names);  // all or none
  for (const std::string& name : names) {
    Target target = targets_of(settings, {name})[0];  // after what the names before it removed
    uint64_t bytes = 0;
    for (const hub::CachedRevision& revision : target.revisions) bytes += revision.bytes;
    std::string what = target.repository.id + (target.revision.empty() ? "" : "@" + target.revision);
    if (!confirmed("Remove " + what + " (" + human(bytes) + ")?", yes,
                   "to remove " + what + " without being asked, add --yes"))
      continue;
    uint64_t freed = 0;
    if (target.revision.empty()) {
      freed = hub::remove_revision(settings.cache, target.repository, "", settings.symlinks);
    } else {
      for (const hub::CachedRevision& revision : target.revisions)
        freed += hub::remove_revision(settings.cache, target.repository, revision.commit, settings.symlinks);
    }
    std::printf("%s removed, %s freed\n", what.c_str(), human(freed).c_str());
  }
  return 0;
}

int verify_models(std::vector<std::string> names, bool delete_damaged) {
  hub::Settings settings = hub::read_settings();
  if (names.empty()) {
    for (const hub::CachedRepository& repository : hub::scan_cache(settings.cache)) names.push_back(repository.id);
  }
  size_t bad = 0;
  for (const Target& target : targets_of(settings, names)) {
    std::set<std::string> damaged;
    for (const hub::CachedRevision& revision : target.revisions) {
      size_t good = 0;
      std::string name = target.repository.id + "@" + revision.commit.substr(0, 8);
      for (const hub::FileCheck& check :
           hub::verify_revision(settings.cache, target.repository, revision, &stop_requested)) {
        good += check.result == hub::FileCheck::good;
        if (check.result == hub::FileCheck::good) continue;
        std::printf("%s  %s: %s\n", name.c_str(), check.path.c_str(), check.why.c_str());
        if (check.result == hub::FileCheck::unknown) continue;
        ++bad;
        for (const hub::CachedFile& file : revision.files) {
          if (file.path == check.path) damaged.insert(file.blob);
        }
      }
      std::printf("%s  %zu of %zu files are as the hub announced them\n", name.c_str(), good, revision.files.size());
    }
    for (const std::string& blob : damaged) {
      if (delete_damaged) hub::remove_blob(target.repository, blob);
    }
  }
  if (bad == 0) return 0;
  fail(ErrorKind::model,
       std::to_string(bad) + (bad == 1 ? " file is" : " files are") + " damaged" +
           (delete_damaged
                ? " and now removed; kinora pull fetches them again"
                : "; kinora models verify --delete-damaged removes them, then kinora pull fetches them again"));
}

}  // namespace

void add_yes(CLI::App* command, bool& yes) {
  command->add_flag("-y,--yes", yes, "Download what is missing of a model on the hub without asking");
}

std::string folder_from_hub(const std::string& given, const ModelRequest& request) {
  std::error_code error;
  auto name = hub::parse_model_name(given);
  if (!name || fs::exists(given, error)) return given;
  hub::Hub hub(hub::read_settings());
  hub::SelectOptions select{request.variant, {}, request.components};
  if (auto folder = hub.find(*name, select)) return *folder;
  if (hub.settings().offline)
    fail(ErrorKind::io, given + " is neither a folder nor complete in the cache " + hub.settings().cache +
                            ", and HF_HUB_OFFLINE is set");
  hub::PullOptions options = with_notices({}, false);
  hub::Plan plan;
  try {
    plan = hub.plan(*name, select, options);
  } catch (const Error& problem) {
    if (problem.kind() == ErrorKind::cancelled || problem.kind() == ErrorKind::internal) throw;
    fail(problem.kind(), "there is no folder " + given + ", and from the hub: " + problem.what());
  }
  std::string command = "kinora pull " + given + (request.variant.empty() ? "" : " --variant " + request.variant);
  if (!confirmed("Download " + given + " (" + summary(plan) + ")?", request.yes,
                 given + " is not in the cache (" + summary(plan) + " to download): run " + command + ", or add --yes"))
    fail(ErrorKind::cancelled, given + " was not downloaded");
  return fetch(hub, plan, options, false);
}

Command add_pull(CLI::App& app) {
  auto a = std::make_shared<PullArguments>();
  CLI::App* c = app.add_subcommand("pull", "Download a model from the Hugging Face hub into its cache");
  c->add_option("model", a->model, "ORG/NAME or ORG/NAME@REVISION (a branch, a tag or a commit)")->required();
  c->add_option("files", a->select.patterns, "Take these files or patterns instead of what the model needs");
  c->add_option("--variant", a->select.variant, "Weight files to take: fp16 or bf16 (default: the plain ones)");
  c->add_flag("--dry-run", a->dry_run, "Say what would be taken and what left, and why");
  c->add_option("-j,--jobs", a->options.jobs, "Files downloaded at once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  c->add_flag("--force", a->options.force, "Download again what is there already");
  c->add_flag("-q,--quiet", a->quiet, "No progress");
  c->footer(
      "The folder is printed at the end. HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the other "
      "variables of huggingface_hub count here too; docs/hub.md has them all.");
  return [a] { return pull(*a); };
}

Command add_models(CLI::App& app) {
  struct Options {
    std::vector<std::string> names;
    bool json = false, yes = false, delete_damaged = false;
  };
  auto o = std::make_shared<Options>();
  CLI::App* c = app.add_subcommand("models", "List the models that are here; remove or verify downloaded ones");
  c->add_flag("--json", o->json, "Print JSON");
  c->require_subcommand(0, 1);
  CLI::App* list = c->add_subcommand("list", "List them (what `kinora models` alone does)");
  list->add_flag("--json", o->json, "Print JSON");
  CLI::App* rm = c->add_subcommand("rm", "Remove models from the cache");
  rm->add_option("models", o->names, "ORG/NAME, or ORG/NAME@REVISION for that revision alone")->required();
  rm->add_flag("-y,--yes", o->yes, "Do not ask");
  CLI::App* verify = c->add_subcommand("verify", "Compare downloaded files with their hashes");
  verify->add_option("models", o->names, "ORG/NAME[@REVISION] (default: all)");
  verify->add_flag("--delete-damaged", o->delete_damaged, "Remove the files that are damaged");
  return [o, rm, verify] {
    if (rm->parsed()) return remove_models(o->names, o->yes);
    if (verify->parsed()) return verify_models(o->names, o->delete_damaged);
    return list_models(o->json);
  };
}

}  // namespace kinora::cli
