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

// --device and --dtype, as of make_runtime.
void add_device(CLI::App& command, std::string& device, std::string& dtype);

// What --device and --dtype say.
struct Where {
  std::string device = "auto", dtype = "auto";
};
// Tiles of film autoencoders: -1 as the model has it, 0 none, else their pixels and frames.
struct VideoTileOptions {
  int64_t size = -1, frames = -1;
};
// What `kinora eval` makes of the components vae3d.encode, vae3d.decode, flux_ae.encode and flux_ae.decode: the
// output's name and the output; nothing for others.
std::optional<std::pair<std::string, Tensor>> evaluate_video_ae(const std::string& model, const std::string& component,
                                                                const Where& where, const std::string& input,
                                                                const VideoTileOptions& tiles);

// The folder given with --model, else $KINORA_MODEL, else the model that came with the program.
std::string model_folder(const std::string& given);

extern std::atomic<bool> stop_requested;  // set by Ctrl-C

size_t peak_memory();  // bytes, of this process so far

}  // namespace kinora::cli
