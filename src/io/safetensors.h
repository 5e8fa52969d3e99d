// The safetensors format (https://github.com/huggingface/safetensors): an 8-byte little-endian header length, a JSON
// header, then the tensors' bytes. Reading maps the file and checks every rule of the format before a tensor is given
// out.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "io/weights.h"

namespace kinora {

struct SafetensorsEntry {
  std::string name;
  DType dtype;
  Shape shape;
  size_t begin, end;  // bytes from the start of the file
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their bytes
  std::map<std::string, std::string> metadata;
};

// Checks the whole structure of a file given as bytes; throws Error(model) naming `name`. Limits beyond the format's
// own: 200,000 tensors, names of 1,024 bytes.
SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& name);

class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path);  // throws Error(io) or Error(model)

  const SafetensorsHeader& header() const { return header_; }
  const std::string& path() const { return path_; }
  // Borrows the mapped file. Throws Error(model) when there is no such tensor.
  Tensor tensor(const std::string& name) const;
  Tensor tensor(const SafetensorsEntry& entry) const;
  bool has(const std::string& name) const { return index_.count(name) > 0; }

 private:
  std::string path_;
  SafetensorsHeader header_;
  std::map<std::string, size_t> index_;
  std::shared_ptr<void> mapping_;
  const std::byte* data_ = nullptr;
};

struct SafetensorsSpec {
  std::string name;
  DType dtype;
  Shape shape;
};

// Written atomically, one tensor after another: `produce` calls its argument with each, in the order of the specs, so
// that not all need be in memory at once. Throws Error(io).
void write_safetensors(const std::string& path, const std::vector<SafetensorsSpec>& specs,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void(const std::function<void(const Tensor&)>& write)>& produce);

// Written atomically, tensors in the given order. Throws Error(io).
void write_safetensors(const std::string& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

// The weights of one component of a published model: <folder>/<base>.safetensors, or the shards that
// <base>.safetensors.index.json names, or either of these of a variant ("fp16", "bf16"). A variant that is
// not there gives way to the plain files, as in diffusers; with none given: the plain files, else bf16, else fp16.
// Throws Error(io) or Error(model), naming the file.
Weights open_weights(const std::string& folder, const std::string& base, const std::string& variant = "");

}  // namespace kinora
