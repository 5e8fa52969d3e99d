// A golden file of one model: its config, its weights "w.…", inputs "in.…" and outputs "out.…".
#pragma once

#include <cstdlib>
#include <string>

#include "io/config.h"
#include "io/safetensors.h"
#include "io/weights.h"

namespace kinora::test {

// The repository, also where the tests run away from the machine that built them.
inline std::string source_folder() {
  const char* moved = std::getenv("KINORA_SOURCE_DIR");
  return moved ? moved : KINORA_SOURCE_DIR;
}

struct Golden {
  SafetensorsFile file;
  Config config;
  Weights weights;

  explicit Golden(const std::string& name)
      : file(SafetensorsFile::open(source_folder() + "/tests/golden/" + name + ".safetensors")),
        config(Config::parse(file.header().metadata.at("config"), name)) {
    for (const SafetensorsEntry& entry : file.header().entries) {
      if (entry.name.starts_with("w.")) weights.add(entry.name.substr(2), file.tensor(entry), file.path());
    }
  }
  Tensor tensor(const std::string& name) const { return file.tensor(name); }
  Tensor channels_last(const std::string& name) const { return tensor(name).permuted({0, 2, 3, 1}); }
  Tensor film(const std::string& name) const {  // [1, C, T, H, W] -> [T, H, W, C]
    Tensor x = tensor(name);
    const Shape& s = x.shape();
    return x.permuted({0, 2, 3, 4, 1}).reshaped({s[2], s[3], s[4], s[1]});
  }
};

}  // namespace kinora::test
