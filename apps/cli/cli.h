// The program's subcommands. Each adds itself to the parser and returns what to run when it is chosen.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "diffusion/pipeline.h"

namespace CLI {
class App;
}

namespace kinora::cli {

using Command = std::function<int()>;

Command add_generate(CLI::App& app);
Command add_eval(CLI::App& app);
Command add_inspect(CLI::App& app);
Command add_bench(CLI::App& app);
Command add_tokenize(CLI::App& app);
Command add_pull(CLI::App& app);
Command add_models(CLI::App& app);

// What a command wants of a model that may have to be downloaded first.
struct ModelRequest {
  std::string variant;                  // "fp16", "bf16"
  bool yes = false;                     // download without asking
  std::vector<std::string> components;  // these alone; empty: all
};
void add_yes(CLI::App* command, bool& yes);

// The folder given with --model, else $KINORA_MODEL, else the model that came with the program. A name, ORG/NAME or
// ORG/NAME@REVISION, stands for its folder in the hub's cache; what is missing there is downloaded after asking.
std::string model_folder(const std::string& given, const ModelRequest& request = {});
std::string folder_from_hub(const std::string& given, const ModelRequest& request);  // of a name or a folder
std::string models_beside_program();  // the folder of the models that came with the program; empty when there is none

extern std::atomic<bool> stop_requested;  // set by Ctrl-C

size_t peak_memory();  // bytes, of this process so far

}  // namespace kinora::cli
