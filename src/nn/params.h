// Access to a checkpoint's tensors while a graph is built: by the checkpoint's own names, with their shapes checked.
#pragma once

#include <memory>
#include <set>
#include <string>

#include "graph/graph.h"
#include "io/weights.h"

namespace kinora {

// A path into the weights: params / "transformer_blocks" / 3 / "attn1". Copied freely; borrows the graph and weights.
class Params {
 public:
  Params(Graph& graph, const Weights& weights);

  Params operator/(const std::string& name) const;
  Params operator/(int index) const { return *this / std::to_string(index); }

  // The tensor "<path>.<name>" in its stored type; a quantized weight as float32, by `dequantize`. Throws Error(model)
  // naming the file and both shapes.
  Value get(const std::string& name, const Shape& shape) const;
  // The same elements as another shape: a 1x1 convolution's [n, k, 1, 1] read as [n, k].
  Value get_as(const std::string& name, const Shape& stored, const Shape& wanted) const;
  // Rows [begin, end) of a tensor that holds several layers' weights one after another; they share its bytes.
  Value get_rows(const std::string& name, const Shape& stored, int64_t begin, int64_t end) const;
  // The tensor as float32 (for small ones: tables, vectors).
  Value f32(const std::string& name, const Shape& shape) const;
  bool has(const std::string& name) const;
  // The stored type of a tensor; float32 when absent.
  DType stored(const std::string& name) const;

  Graph& graph() const { return *graph_; }
  const std::string& path() const { return path_; }
  // Sets the graph's scope to this path while the guard lives.
  ScopeGuard scope() const { return ScopeGuard(*graph_, path_); }

  // Throws Error(model) naming the first tensors of the weights that start with `prefix` and that nothing has asked
  // for.
  void expect_all_used(const std::string& prefix = "") const;

 private:
  // The stored tensor, checked and marked as used.
  const Tensor& checked(const std::string& name, const Shape& stored) const;
  // Rows of a quantized weight [n, k, ..] (of all its n rows: `range` is empty) as [rows, k].
  Value dequantized(const std::string& name, QuantFormat format, int64_t begin, int64_t end,
                    const std::string& range) const;
  std::string full(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }
  Graph* graph_;
  const Weights* weights_;
  std::shared_ptr<std::set<std::string>> used_;
  std::string path_;
};

}  // namespace kinora
