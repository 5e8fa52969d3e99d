// The program's subcommands. Each adds itself to the parser and returns what to run when it is chosen.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "diffusion/pipeline.h"
#include "io/safetensors.h"

namespace CLI {
class App;
}

namespace kinora::cli {

using Command = std::function<int()>;

struct EvalTiming;  // measure.h

Command add_generate(CLI::App& app);
Command add_eval(CLI::App& app);
Command add_inspect(CLI::App& app);
Command add_bench(CLI::App& app);
Command add_tokenize(CLI::App& app);
Command add_config(CLI::App& app);
Command add_pull(CLI::App& app);
Command add_models(CLI::App& app);
Command add_quantize(CLI::App& app);

// Whether `kinora eval` knows the component as a transformer of films or of Flux, and what it makes of one: the
// output's name and the output.
bool is_mmdit(const std::string& component);
std::pair<std::string, Tensor> evaluate_mmdit(const std::string& model, const std::string& component,
                                              const SafetensorsFile& in, const Runtime& runtime,
                                              const EvalTiming& timing);

// kinora inspect of a folder with the transformer of films alone: what its graph for a film of 129 frames and 192 x 336
// pixels needs and which attention it uses or, with `graph`, that graph as compiled.
bool is_mmdit_folder(const std::string& folder);
int inspect_mmdit(const std::string& folder, bool graph, const Runtime& runtime);

// Tiles of film autoencoders: -1 as the model has it, 0 none, else their pixels and frames.
struct VideoTileOptions {
  int64_t size = -1, frames = -1;
};
// The same of the components vae3d.encode, vae3d.decode, flux_ae.encode and flux_ae.decode.
bool is_video_ae(const std::string& component);
std::pair<std::string, Tensor> evaluate_video_ae(const std::string& model, const std::string& component,
                                                 const SafetensorsFile& in, const Runtime& runtime,
                                                 const VideoTileOptions& tiles);

// What a command wants of a model that may have to be downloaded first.
struct ModelRequest {
  std::string variant;                  // "fp16", "bf16"
  bool yes = false;                     // download without asking
  std::vector<std::string> components;  // these alone; empty: all
  bool films = false;                   // of those that came with the program, the one that makes films
};
void add_yes(CLI::App* command, bool& yes);

// The folder given with --model, else $KINORA_MODEL, else the model that came with the program. A name, ORG/NAME or
// ORG/NAME@REVISION, stands for its folder in the hub's cache; what is missing there is downloaded after asking.
std::string model_folder(const std::string& given, const ModelRequest& request = {});
std::string folder_from_hub(const std::string& given, const ModelRequest& request);  // of a name or a folder
// What stands for that folder on other machines too, where it can: the name of a model that came along or is on the
// hub.
std::string model_name(const std::string& folder);
std::string models_beside_program();  // the folder of the models that came with the program; empty when there is none

// "input_ids" [batch, tokens], I32 or I64 in the file, as i32.
Tensor input_ids(const SafetensorsFile& in);

// The folder of a text encoder by itself, as the hub has T5's and CLIP's: not a pipeline's folder.
bool is_text_encoder(const std::string& folder);
// "input_ids" (T5: and perhaps "attention_mask") -> "last_hidden_state" (CLIP: and "pooler_output").
std::vector<std::pair<std::string, Tensor>> evaluate_text_encoder(const std::string& folder, const SafetensorsFile& in,
                                                                  const Runtime& runtime, const EvalTiming& timing);

extern std::atomic<bool> stop_requested;  // set by Ctrl-C

size_t peak_memory();        // bytes that this process has held at most so far, mapped files' pages included
double processor_seconds();  // of all threads so far

}  // namespace kinora::cli
