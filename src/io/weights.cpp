#include "io/weights.h"

namespace kinora {

void Weights::add(std::string name, Tensor tensor, std::string file) {
  auto [at, fresh] = entries_.try_emplace(name, Entry{std::move(tensor), file});
  if (!fresh) fail(ErrorKind::model, "tensor '" + name + "' is in " + at->second.file + " and again in " + file);
}

const Tensor* Weights::find(const std::string& name) const {
  auto found = entries_.find(name);
  return found == entries_.end() ? nullptr : &found->second.tensor;
}

void Weights::replace(const std::string& name, Tensor tensor) {
  Entry& entry = entries_.at(name);
  entry.tensor = std::move(tensor);
  entry.format.reset();
}

void Weights::set_format(const std::string& name, QuantFormat format) { entries_.at(name).format = format; }

std::optional<QuantFormat> Weights::format(const std::string& name) const {
  auto found = entries_.find(name);
  return found == entries_.end() ? std::nullopt : found->second.format;
}

Shape Weights::shape_of(const std::string& name) const {
  const Tensor* tensor = find(name);
  check(tensor != nullptr, "Weights::shape_of: no such tensor");
  std::optional<QuantFormat> quantized = format(name);
  return quantized ? decoded_shape(*quantized, tensor->shape()) : tensor->shape();
}

const std::string& Weights::file_of(const std::string& name) const {
  auto found = entries_.find(name);
  return found == entries_.end() ? source_ : found->second.file;
}

std::vector<std::string> Weights::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

size_t Weights::bytes() const {
  size_t total = 0;
  for (const auto& [name, entry] : entries_) total += entry.tensor.bytes();
  return total;
}

void Weights::release_pages() const {
  for (const auto& [name, entry] : entries_) entry.tensor.release_pages();
}

void Weights::drop_repacked() {
  for (auto& [name, entry] : entries_) entry.tensor.drop_repacked();
}

void Weights::keep_repacked() {
  for (auto& [name, entry] : entries_) entry.tensor.keep_repacked();
}

}  // namespace kinora
