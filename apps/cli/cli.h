// The program's subcommands. Each adds itself to the parser and returns what to run when it is chosen.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

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

// What `kinora eval` makes of the components "mmdit" and "flux": the output's name and the output; nothing for others.
std::optional<std::pair<std::string, Tensor>> evaluate_mmdit(const std::string& model, const std::string& component,
                                                             const std::string& dtype, const std::string& input);

// The folder given with --model, else $KINORA_MODEL, else the model that came with the program.
std::string model_folder(const std::string& given);

extern std::atomic<bool> stop_requested;  // set by Ctrl-C

size_t peak_memory();  // bytes, of this process so far

}  // namespace kinora::cli
