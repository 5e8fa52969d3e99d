// kinora: text to pictures and films from the command line.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <new>
#include <thread>

#include "cli.h"
#include "diffusion/video_denoiser.h"
#include "io/hub.h"

namespace kinora::cli {

std::atomic<bool> stop_requested{false};

// The first Ctrl-C asks for a clean stop, the second ends the program at once; files are only ever renamed into place.
// A thread of its own waits for them: oneDNN's generated code uses the stack pointer for its data at times, and a
// signal handler on such a thread would write its frame into that. To be called before any other thread begins.
static void watch_for_interrupts() {
  sigset_t set;
  sigemptyset(&set);
  for (int number : {SIGINT, SIGTERM}) {
    sigaddset(&set, number);
    signal(number, SIG_DFL);  // a shell may have had them ignored
  }
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set] {
    for (int number = 0; sigwait(&set, &number) == 0;) {
      if (stop_requested.exchange(true)) _exit(130);
    }
  }).detach();
}

// A mapped file that another program cuts short is met here: there is no way back into the computation.
static void on_lost_page(int) {
  constexpr char kMessage[] = "kinora: a file that was being read has become shorter (changed by another program?)\n";
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
  _exit(5);
}

std::string models_beside_program() {
  namespace fs = std::filesystem;
  std::error_code error;
  fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const char* place : {"../models", "models", "../share/kinora/models"}) {
    if (fs::exists(here / place / "kinora-mini/model_index.json", error))
      return fs::weakly_canonical(here / place, error).string();
  }
  return "";
}

std::string model_folder(const std::string& given, const ModelRequest& request) {
  std::string models = models_beside_program(), name = given;
  if (const char* variable = std::getenv("KINORA_MODEL"); name.empty() && variable) name = variable;
  if (!name.empty()) {
    std::error_code error;  // "kinora-mini", as `kinora models` lists it, unless there is such a folder here
    bool plain = name.find('/') == std::string::npos && name[0] != '.' && !std::filesystem::exists(name, error);
    std::string beside = models + "/" + name;
    return plain && !models.empty() && std::filesystem::exists(beside, error) ? beside : folder_from_hub(name, request);
  }
  if (models.empty()) fail(ErrorKind::usage, "no model: give --model FOLDER or ORG/NAME, or set KINORA_MODEL");
  if (!request.films) return models + "/kinora-mini";
  std::string folder = models + "/kinora-mini-video";
  if (!has_mmdit(folder, MmditRole::film))
    fail(ErrorKind::usage,
         "no model that makes films: give --model FOLDER with the published files of Open-Sora 2.0, or set "
         "KINORA_MODEL");
  return folder;
}

std::string model_name(const std::string& folder) {
  std::filesystem::path path(folder);
  std::string models = models_beside_program();
  return !models.empty() && path.parent_path() == models ? path.filename().string() : hub::name_of_folder(folder);
}

// Not getrusage's figure, which begins with what the parent process held when it started this one.
size_t peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}

double processor_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

static int exit_status(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage: return 2;
    case ErrorKind::input: return 3;
    case ErrorKind::model: return 4;
    case ErrorKind::io: return 5;
    case ErrorKind::resource: return 6;
    case ErrorKind::cancelled: return 130;
    case ErrorKind::internal: return 70;
  }
  return 70;
}

// CLI11's words, but for a prompt without quotes, of which each word is an argument.
static std::string describe(const CLI::ParseError& error, const CLI::App& app) {
  std::vector<std::string> left = app.remaining(true);
  bool words = std::none_of(left.begin(), left.end(), [](const std::string& word) { return word.starts_with('-'); });
  if (left.empty() || !words || !app.got_subcommand("generate")) return error.what();
  return "a prompt of several words needs quotes around it; '" + left[0] + "' stands by itself";
}

static int run(int argc, char** argv) {
  CLI::App app{"Draws pictures and makes films from text."};
  app.set_version_flag("--version", "kinora " KINORA_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Exit status: 0 done, 2 wrong use, 3 bad input, 4 bad model, 5 file error, 6 out of memory, 70 bug, 130 "
      "stopped.");
  std::map<std::string, Command> commands{
      {"generate", add_generate(app)}, {"eval", add_eval(app)},         {"inspect", add_inspect(app)},
      {"bench", add_bench(app)},       {"tokenize", add_tokenize(app)}, {"config", add_config(app)},
      {"pull", add_pull(app)},         {"models", add_models(app)},     {"quantize", add_quantize(app)}};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    if (argc > 1 && argv[1][0] != '-' && !commands.count(argv[1])) {
      std::fprintf(stderr, "kinora: unknown command '%s' (see kinora --help)\n", argv[1]);
      return 2;
    }
    std::fprintf(stderr, "kinora: %s (see kinora --help)\n", describe(error, app).c_str());
    return 2;
  }
  return commands.at(app.get_subcommands().at(0)->get_name())();
}

}  // namespace kinora::cli

int main(int argc, char** argv) {
  kinora::cli::watch_for_interrupts();
  struct sigaction action {};
  action.sa_handler = kinora::cli::on_lost_page;
  sigaction(SIGBUS, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // writing fails with an error instead
  try {
    return kinora::cli::run(argc, argv);
  } catch (const kinora::Error& error) {
    if (error.kind() == kinora::ErrorKind::internal) {
      std::fprintf(stderr, "kinora: %s (a bug, found at %s:%u; please report it)\n", error.what(),
                   error.where().file_name(), static_cast<unsigned>(error.where().line()));
    } else {
      std::fprintf(stderr, "kinora: %s\n", error.what());
    }
    return kinora::cli::exit_status(error.kind());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "kinora: out of memory (use a smaller size, --tile or --dtype bfloat16)\n");
    return 6;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kinora: %s (this is a bug; please report it)\n", error.what());
    return 70;
  }
}
