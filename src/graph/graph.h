// A static graph of typed tensors. Nodes are appended, never changed; an id is a position, so ids are in
// topological order. Leaves: "input" (fed at each run), "parameter" and "constant" (hold their tensor).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "graph/op.h"

namespace kinora {

using NodeId = int32_t;

struct Node {
  const OpDef* op = nullptr;
  std::vector<NodeId> inputs;
  Attrs attrs;
  TensorSpec spec;
  // Inputs, parameters: their own; other nodes: the scope that built them, as "transformer_blocks.3.attn1".
  std::string name;
  Tensor value;  // of parameters and constants
};

class Graph;

// A node of a graph under construction; a small handle, copied freely.
class Value {
 public:
  Value() = default;
  Value(Graph* graph, NodeId id) : graph_(graph), id_(id) {}
  bool defined() const { return graph_ != nullptr; }
  Graph& graph() const { return *graph_; }
  NodeId id() const { return id_; }
  const Shape& shape() const;
  DType dtype() const;

 private:
  Graph* graph_ = nullptr;
  NodeId id_ = -1;
};

class Graph {
 public:
  Graph() = default;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  Graph(Graph&&) = default;

  Value input(std::string name, Shape shape, DType dtype = DType::f32);
  Value parameter(std::string name, Tensor value);
  Value constant(Tensor value);
  Value scalar(double value, DType dtype = DType::f32);  // rank 0
  // Checks and appends. An exception of `infer` is rethrown with the op and the current scope in front.
  Value append(const OpDef& op, std::span<const Value> inputs, Attrs attrs);
  void output(std::string name, Value value);

  const std::deque<Node>& nodes() const { return nodes_; }
  const Node& node(NodeId id) const { return nodes_[static_cast<size_t>(id)]; }
  const std::vector<std::pair<std::string, NodeId>>& outputs() const { return outputs_; }

  std::string scope;  // the path given to nodes appended from here on

 private:
  NodeId push(Node node);
  std::deque<Node> nodes_;  // appending does not move nodes, so references stay good
  std::vector<std::pair<std::string, NodeId>> outputs_;
};

bool is_leaf(const Node& node);
extern const OpDef kInputOp, kParameterOp, kConstantOp;

// Appends a node to the graph of its first input.
Value apply(const OpDef& op, std::initializer_list<Value> inputs, Attrs attrs = {});
Value apply(const OpDef& op, std::span<const Value> inputs, Attrs attrs = {});

// Sets Graph::scope for a C++ scope.
class ScopeGuard {
 public:
  ScopeGuard(Graph& graph, std::string path) : graph_(graph), before_(std::move(graph.scope)) {
    graph_.scope = std::move(path);
  }
  ~ScopeGuard() { graph_.scope = std::move(before_); }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;

 private:
  Graph& graph_;
  std::string before_;
};

// One line a node: "%12 = linear(%3, %4, %5) act=silu : f32 [2, 256, 384]   # transformer_blocks.0.ff".
std::string to_text(const Graph& graph);

}  // namespace kinora
