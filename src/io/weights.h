// Parameters by name, each a tensor that borrows mapped file memory or owns its bytes.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/quantize.h"
#include "core/tensor.h"

namespace kinora {

class Weights {
 public:
  // Throws Error(model) when the name is there already; `file` is only for messages.
  void add(std::string name, Tensor tensor, std::string file = "memory");
  // Another tensor under a name that is there; what is known of the old one goes.
  void replace(const std::string& name, Tensor tensor);
  // Says that a tensor holds a quantized weight's codes; its scales stand beside it (io/quantized.h).
  void set_format(const std::string& name, QuantFormat format);

  const Tensor* find(const std::string& name) const;                 // null when absent
  std::optional<QuantFormat> format(const std::string& name) const;  // none: as it is, or absent
  // Of the weight, not of its codes; throws Error(internal) when absent.
  Shape shape_of(const std::string& name) const;
  const std::string& file_of(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  size_t size() const { return entries_.size(); }
  size_t bytes() const;
  // See Tensor: for every tensor.
  void release_pages() const;
  void keep_repacked();  // anew
  void drop_repacked();
  bool prepared() const { return prepared_; }  // for the device that they run on, see prepare_weights
  void set_prepared() { prepared_ = true; }
  const std::string& source() const { return source_; }  // the folder or file they come from
  void set_source(std::string source) { source_ = std::move(source); }

 private:
  struct Entry {
    Tensor tensor;
    std::string file;
    std::optional<QuantFormat> format = {};
  };
  std::map<std::string, Entry> entries_;
  std::string source_ = "memory";
  bool prepared_ = false;
};

}  // namespace kinora
