#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "io/file.h"
#include "io/quantized.h"

namespace kinora {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kMaxTensors = 200'000;
constexpr size_t kMaxName = 1024;

// Builds the entries straight from the parser's events, so that a hostile header costs no more memory than its own
// size.
class HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(SafetensorsHeader& header, const std::string& file) : header_(header), file_(file) {}

  bool start_object(size_t) override {
    if (depth_ == 2) refuse("a tensor's entry is nested too deeply");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    if (depth_ == 1) finish_entry();
    return true;
  }
  bool key(std::string& key) override {
    if (depth_ == 1) {
      if (key.size() > kMaxName) refuse("a tensor's name is longer than 1024 bytes");
      if (!names_.insert(key).second) refuse("'" + key.substr(0, 80) + "' is named twice");
      entry_ = {key, DType::f32, {}, 0, 0};
      metadata_ = key == "__metadata__";
      seen_.clear();
    } else if (!seen_.insert(key).second) {
      refuse("'" + entry_.name + "' gives \"" + key.substr(0, 80) + "\" twice");
    }
    field_ = key;
    return true;
  }
  bool string(std::string& text) override {
    if (depth_ == 2 && metadata_) {
      header_.metadata[field_] = text;
    } else if (depth_ == 2 && field_ == "dtype") {
      entry_.dtype = dtype_from_name(text);
    } else {
      refuse_value();
    }
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ != 2 || metadata_ || (field_ != "shape" && field_ != "data_offsets") || in_array_) refuse_value();
    in_array_ = true;
    numbers_.clear();
    return true;
  }
  bool end_array() override {
    in_array_ = false;
    if (field_ == "shape") {
      shape_.assign(numbers_.begin(), numbers_.end());
    } else {
      offsets_ = numbers_;
    }
    return true;
  }
  bool number_unsigned(uint64_t value) override {
    if (!in_array_ || numbers_.size() >= 64 || value > static_cast<uint64_t>(INT64_MAX)) refuse_value();
    numbers_.push_back(value);
    return true;
  }
  bool null() override { return refuse_value(); }
  bool boolean(bool) override { return refuse_value(); }
  bool number_integer(int64_t) override { return refuse_value(); }
  bool number_float(double, const std::string&) override { return refuse_value(); }
  bool binary(Json::binary_t&) override { return refuse_value(); }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    refuse("the header is not valid JSON near byte " + std::to_string(position));
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const { fail(ErrorKind::model, file_ + " is damaged: " + what); }
  [[noreturn]] bool refuse_value() const {
    refuse("'" + entry_.name.substr(0, 80) + "' has an unexpected value in its header");
  }
  void finish_entry() {
    if (metadata_) return;
    bool complete = seen_ == std::set<std::string>{"dtype", "shape", "data_offsets"} && offsets_.size() == 2;
    if (!complete) refuse("the entry of '" + entry_.name + "' must give dtype, shape and two data_offsets");
    if (header_.entries.size() >= kMaxTensors) refuse("it names more than 200,000 tensors");
    entry_.shape = Shape(std::span<const int64_t>(shape_));
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
    header_.entries.push_back(entry_);
    shape_.clear();
    offsets_.clear();
  }

  SafetensorsHeader& header_;
  const std::string& file_;
  SafetensorsEntry entry_{};
  std::set<std::string> names_, seen_;
  std::string field_;
  std::vector<uint64_t> numbers_, offsets_;
  std::vector<int64_t> shape_;
  int depth_ = 0;
  bool metadata_ = false, in_array_ = false;
};

void check_layout(SafetensorsHeader& header, size_t data_begin, size_t file_size, const std::string& name) {
  auto& entries = header.entries;
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  size_t at = 0;
  for (SafetensorsEntry& entry : entries) {
    auto refuse = [&](const std::string& what) {
      fail(ErrorKind::model, name + " is damaged: tensor '" + entry.name + "' " + what);
    };
    if (entry.begin != at) refuse(entry.begin < at ? "overlaps another" : "leaves a hole before it");
    if (entry.end < entry.begin) refuse("ends before it begins");
    size_t bytes = static_cast<size_t>(entry.shape.numel()) * dtype_size(entry.dtype);  // Shape keeps this below 2^63
    if (entry.end - entry.begin != bytes) {
      refuse("has " + std::to_string(entry.end - entry.begin) + " bytes, but shape " + entry.shape.str() + " of " +
             std::string(dtype_name(entry.dtype)) + " needs " + std::to_string(bytes));
    }
    at = entry.end;
    if (at > file_size - data_begin) refuse("reaches beyond the end of the file (a download cut short?)");
    entry.begin += data_begin;
    entry.end += data_begin;
  }
  if (at != file_size - data_begin) {
    fail(ErrorKind::model,
         name + " is damaged: " + std::to_string(file_size - data_begin - at) + " bytes follow the last tensor");
  }
}

}  // namespace

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& name) {
  auto refuse = [&](const std::string& what) { fail(ErrorKind::model, name + " is no safetensors file: " + what); };
  static_assert(std::endian::native == std::endian::little);
  uint64_t length = 0;
  if (file.size() < 8) refuse("it has only " + std::to_string(file.size()) + " bytes");
  std::memcpy(&length, file.data(), 8);
  if (length > kMaxHeader) refuse("its header would be " + std::to_string(length) + " bytes long");
  if (length > file.size() - 8) refuse("it ends within its header (a download cut short?)");
  const char* begin = reinterpret_cast<const char*>(file.data()) + 8;
  if (length == 0 || *begin != '{') refuse("its header does not begin with '{'");

  SafetensorsHeader header;
  HeaderReader reader(header, name);
  try {
    Json::sax_parse(begin, begin + length, &reader);
  } catch (const Json::exception& error) {
    refuse(std::string("its header cannot be read: ") + std::string(error.what()).substr(0, 120));
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::model) throw;
    fail(ErrorKind::model, name + " is damaged: " + error.what());
  }
  check_layout(header, 8 + length, file.size(), name);
  return header;
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  SafetensorsFile result;
  auto mapping = MappedFile::open(path);
  result.path_ = path;
  result.header_ = parse_safetensors(mapping->bytes(), path);
  result.data_ = mapping->bytes().data();
  result.mapping_ = mapping;
  for (size_t i = 0; i < result.header_.entries.size(); ++i) result.index_[result.header_.entries[i].name] = i;
  return result;
}

Tensor SafetensorsFile::tensor(const std::string& name) const {
  auto found = index_.find(name);
  if (found == index_.end()) fail(ErrorKind::model, path_ + " has no tensor '" + name + "'");
  return tensor(header_.entries[found->second]);
}

Tensor SafetensorsFile::tensor(const SafetensorsEntry& entry) const {
  const std::byte* data = data_ + entry.begin;
  if (reinterpret_cast<uintptr_t>(data) % dtype_size(entry.dtype) == 0) {
    return Tensor::mapped(entry.shape, entry.dtype, mapping_, const_cast<std::byte*>(data));  // never written through
  }
  Tensor copy(entry.shape, entry.dtype);  // the format does not promise alignment
  if (copy.bytes()) std::memcpy(copy.raw(), data, copy.bytes());
  return copy;
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsSpec>& specs,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void(const std::function<void(const Tensor&)>& write)>& produce) {
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  size_t at = 0;
  for (const SafetensorsSpec& spec : specs) {
    std::vector<int64_t> dims(spec.shape.dims().begin(), spec.shape.dims().end());
    size_t end = at + static_cast<size_t>(spec.shape.numel()) * dtype_size(spec.dtype);
    header[spec.name] = {{"dtype", dtype_name(spec.dtype)}, {"shape", dims}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  write_atomically(path, [&](int fd) {
    uint64_t length = text.size();
    write_all(fd, &length, 8, path);
    write_all(fd, text.data(), text.size(), path);
    size_t next = 0;
    produce([&](const Tensor& tensor) {
      check(next < specs.size() && tensor.dtype() == specs[next].dtype && tensor.shape() == specs[next].shape,
            "write_safetensors: a tensor is not the one announced");
      ++next;
      write_all(fd, tensor.raw(), tensor.bytes(), path);
    });
    check(next == specs.size(), "write_safetensors: a tensor is missing");
  });
}

void write_safetensors(const std::string& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsSpec> specs;
  for (const auto& [name, tensor] : tensors) specs.push_back({name, tensor.dtype(), tensor.shape()});
  write_safetensors(path, specs, metadata, [&](const auto& write) {
    for (const auto& [name, tensor] : tensors) write(tensor);
  });
}

namespace {

namespace fs = std::filesystem;

void add_file(Weights& weights, const SafetensorsFile& file) {
  for (const SafetensorsEntry& entry : file.header().entries) weights.add(entry.name, file.tensor(entry), file.path());
}

// After all files, as scales may be in another than their codes.
void add_formats(Weights& weights, const SafetensorsFile& file) {
  for (const auto& [layer, format] : read_quantization(file.header().metadata, file.path()).layers) {
    check_quantized(weights, layer + ".weight", format);
    weights.set_format(layer + ".weight", format);
  }
}

Weights open_sharded(const std::string& folder, const std::string& index_path) {
  Json index;
  try {
    index = Json::parse(read_file(index_path, size_t{64} << 20));
  } catch (const Json::exception& error) {
    fail(ErrorKind::model, index_path + " is not valid JSON (" + std::string(error.what()).substr(0, 120) + ")");
  }
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object() ||
      index["weight_map"].empty()) {
    fail(ErrorKind::model, index_path + " has no \"weight_map\" object");
  }
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string()) fail(ErrorKind::model, index_path + ": \"" + tensor + "\" must name a file");
    std::string name = file.get<std::string>();
    if (name.empty() || name.find('/') != std::string::npos || name.find('\\') != std::string::npos || name[0] == '.') {
      fail(ErrorKind::model,
           index_path + " names the file \"" + name.substr(0, 80) + "\"; only plain file names beside it are opened");
    }
    shards[name].insert(tensor);
  }
  Weights weights;
  std::vector<SafetensorsFile> files;
  for (const auto& [name, expected] : shards) {
    SafetensorsFile file = SafetensorsFile::open((fs::path(folder) / name).string());
    for (const std::string& tensor : expected) {
      if (!file.has(tensor))
        fail(ErrorKind::model, file.path() + " lacks tensor '" + tensor + "' that " + index_path + " places there");
    }
    for (const SafetensorsEntry& entry : file.header().entries) {
      if (!expected.count(entry.name))
        fail(ErrorKind::model, file.path() + " holds '" + entry.name + "', which " + index_path + " does not list");
    }
    add_file(weights, file);
    files.push_back(std::move(file));
  }
  for (const SafetensorsFile& file : files) add_formats(weights, file);
  return weights;
}

}  // namespace

Weights open_weights(const std::string& folder, const std::string& base, const std::string& variant) {
  std::vector<std::string> variants =
      variant.empty() ? std::vector<std::string>{"", "bf16", "fp16"} : std::vector<std::string>{variant, ""};
  fs::path root(folder);
  for (const std::string& v : variants) {
    std::string dotted = v.empty() ? "" : "." + v;
    fs::path single = root / (base + dotted + ".safetensors");
    if (fs::exists(single)) {
      Weights weights;
      SafetensorsFile file = SafetensorsFile::open(single.string());
      add_file(weights, file);
      add_formats(weights, file);
      weights.set_source(single.string());
      return weights;
    }
    // diffusers has written variant indices under both names.
    for (const std::string& name :
         {base + ".safetensors.index" + dotted + ".json", base + dotted + ".safetensors.index.json"}) {
      fs::path index = root / name;
      if (!fs::exists(index)) continue;
      Weights weights = open_sharded(folder, index.string());
      weights.set_source(index.string());
      return weights;
    }
  }
  fail(ErrorKind::io, "no weights in " + folder + ": neither " + base + (variant.empty() ? "" : "." + variant) +
                          ".safetensors nor an index of shards is there");
}

}  // namespace kinora
