// The program's subcommands. Each adds itself to the parser and returns what to run when it is chosen.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <string>

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
Command add_config(CLI::App& app);

// The folder given with --model, else $KINORA_MODEL, else the model that came with the program.
std::string model_folder(const std::string& given);

extern std::atomic<bool> stop_requested;  // set by Ctrl-C

size_t peak_memory();  // bytes, of this process so far

}  // namespace kinora::cli
