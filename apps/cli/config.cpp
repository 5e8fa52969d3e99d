// kinora config: checks, resolves and describes configuration files.
#include <cstdio>

#include "cli.h"
#include "setting_flags.h"

namespace kinora::cli {
namespace {

int check_files(const std::vector<std::string>& files) {
  bool good = true;
  for (const std::string& file : files) {
    std::vector<std::string> problems = check_settings(file);
    for (const std::string& problem : problems) std::fprintf(stderr, "kinora: %s\n", problem.c_str());
    if (problems.empty()) std::printf("%s: ok\n", file.c_str());
    good = good && problems.empty();
  }
  return good ? 0 : 3;
}

}  // namespace

Command add_config(CLI::App& app) {
  CLI::App* c = app.add_subcommand("config", "Check, resolve and describe configuration files");
  c->require_subcommand(1);
  auto files = std::make_shared<std::vector<std::string>>();
  CLI::App* check = c->add_subcommand("check", "Say all that is wrong with files, by line and column");
  check->add_option("files", *files, "Configuration files")->required();
  CLI::App* show = c->add_subcommand("show", "Print what a configuration comes to, and where each value is from");
  auto flags = std::make_shared<SettingFlags>(*show, "files");
  CLI::App* schema = c->add_subcommand("schema", "Print a JSON Schema of configuration files");
  auto markdown = std::make_shared<bool>(false);
  schema->add_flag("--markdown", *markdown, "Print the reference page instead");
  return [=] {
    if (*check) return check_files(*files);
    std::string text = *show ? settings_yaml(flags->resolve()) : *markdown ? settings_reference() : settings_schema();
    std::fwrite(text.data(), 1, text.size(), stdout);
    return 0;
  };
}

}  // namespace kinora::cli
