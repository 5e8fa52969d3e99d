// Parameters by name, each a tensor that borrows mapped file memory or owns its bytes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace kinora {

class Weights {
 public:
  // Throws Error(model) when the name is there already; `file` is only for messages.
  void add(std::string name, Tensor tensor, std::string file = "memory");

  const Tensor* find(const std::string& name) const;  // null when absent
  const std::string& file_of(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  size_t size() const { return entries_.size(); }
  size_t bytes() const;
  // See Tensor: for every tensor.
  void release_pages() const;
  void keep_repacked();  // anew
  void drop_repacked();
  const std::string& source() const { return source_; }  // the folder or file they come from
  void set_source(std::string source) { source_ = std::move(source); }

 private:
  struct Entry {
    Tensor tensor;
    std::string file;
  };
  std::map<std::string, Entry> entries_;
  std::string source_ = "memory";
};

}  // namespace kinora
