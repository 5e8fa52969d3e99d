// Which files of a repository a model needs: one of each weight, in the variant asked for, and the small files around
// it. The same rules as diffusers', so that its loader finds everything in what was downloaded, except that weights
// other than safetensors and code are never taken.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace kinora::hub {

struct SelectOptions {
  std::string variant;                  // "fp16", "bf16"; empty: plain files, else bf16, else fp16
  std::vector<std::string> patterns;    // take exactly these (shell patterns, a folder as "name/"); empty: by the rules
  std::vector<std::string> components;  // of a pipeline, these alone; empty: all
};

struct Selection {
  std::vector<std::string> files;                             // sorted
  std::vector<std::pair<std::string, std::string>> left_out;  // a path and why, sorted
  std::vector<std::string> missing;                           // what the model would need besides, in words
};

// `names`: all paths of the repository. `read` gives a small file of it (model_index.json, an index of shards). Throws
// Error(model) for files that are not what their names say, Error(input) when the repository is of no known kind.
using ReadFile = std::function<std::string(const std::string& path)>;
Selection select_files(const std::string& repository, const std::vector<std::string>& names,
                       const SelectOptions& options, const ReadFile& read);

}  // namespace kinora::hub
