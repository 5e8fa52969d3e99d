// A model folder's JSON configs: parsed with limits, read with types and ranges checked.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace kinora {

// One JSON object. Every getter throws Error(model) that names the file, the key and what was expected.
class Config {
 public:
  // Throws Error(io) when the file cannot be read, Error(model) when it is no JSON object (or is larger than 16 MiB,
  // nested deeper than 64, or repeats a key).
  static Config load(const std::string& path);
  static Config parse(const std::string& text, const std::string& name);

  bool has(const std::string& key) const;  // present and not null
  int64_t integer(const std::string& key, int64_t low, int64_t high) const;
  int64_t integer(const std::string& key, int64_t low, int64_t high, int64_t fallback) const;
  double real(const std::string& key, double low, double high, double fallback) const;
  bool boolean(const std::string& key, bool fallback) const;
  std::string text(const std::string& key, const std::string& fallback) const;
  std::optional<double> optional_real(const std::string& key, double low, double high) const;
  std::vector<int64_t> integers(const std::string& key, int64_t low, int64_t high, std::vector<int64_t> fallback) const;
  std::vector<bool> booleans(const std::string& key, std::vector<bool> fallback) const;
  // A list of texts, or one text repeated `count` times.
  std::vector<std::string> texts(const std::string& key, size_t count, const std::string& fallback) const;
  // A list of lists of integers; empty when absent.
  std::vector<std::vector<int64_t>> integer_lists(const std::string& key, int64_t low, int64_t high) const;
  // The first text of a list such as model_index.json's ["diffusers", "SanaTransformer2DModel"]: its last entry.
  std::string class_name(const std::string& key) const;
  Config child(const std::string& key) const;  // the object of that name; an empty one when absent
  std::vector<std::string> keys() const;

  const std::string& name() const { return name_; }
  std::string dump() const;

 private:
  struct Body;
  std::shared_ptr<const Body> body_;
  std::string name_;
};

}  // namespace kinora
