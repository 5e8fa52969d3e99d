// Compiling a graph for a backend, and running it. All work that depends on shapes alone (decomposition of missing
// ops, folding of constants, memory plan, library plans) happens in compile(); run() only computes.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/threads.h"
#include "graph/graph.h"

namespace kinora {

// What a kernel may look at when it is made.
struct StepSpec {
  const Node& node;
  std::vector<TensorSpec> inputs;
  std::vector<const Tensor*> values;  // per input: its tensor when it is a parameter or constant, else null
  int threads = 1;                    // size of the pool that will run it

  const TensorSpec& output() const { return node.spec; }
};

struct StepArgs {
  std::span<const void* const> in;
  void* out;
  std::byte* scratch;  // 64-byte aligned, Step::scratch_bytes long
  ThreadPool& pool;
};

struct Step {
  std::function<void(const StepArgs&)> run;
  size_t scratch_bytes = 0;
  bool in_place = false;  // may write its output over its first input
};

// One row of a backend's kernel table. `supports` null: everything that the op's own checks let through.
struct Kernel {
  const OpDef* op;
  Step (*make)(const StepSpec& spec);
  bool (*supports)(const StepSpec& spec) = nullptr;
};

struct Backend {
  std::string_view name;
  std::span<const Kernel> kernels;
};

// Working memory that executables of one session share, one running at a time: it grows to the largest need.
class Arena {
 public:
  std::byte* reserve(size_t bytes);
  size_t size() const { return size_; }
  void release();

 private:
  std::shared_ptr<std::byte[]> memory_;
  size_t size_ = 0;
};

struct ExecutionContext {
  std::shared_ptr<ThreadPool> pool;
  std::shared_ptr<Arena> arena;
  const std::atomic<bool>* stop = nullptr;  // when it becomes true, run() throws Error(cancelled)
};

class Executable {
 public:
  // Feeds inputs by name and returns the outputs by name, in tensors of their own. Throws Error(internal) for a missing
  // input or a wrong shape; Error(cancelled) when the context's stop flag is set.
  std::map<std::string, Tensor> run(const std::map<std::string, Tensor>& inputs) const;

  size_t arena_bytes() const { return arena_bytes_; }
  const Graph& graph() const { return *graph_; }  // as compiled

 private:
  friend Executable compile(const Graph&, const Backend&, ExecutionContext);
  struct Planned {
    NodeId id;
    Step step;
  };
  std::unique_ptr<Graph> graph_;
  ExecutionContext context_;
  std::vector<Planned> steps_;
  std::vector<NodeId> storage_;  // per node: the node whose memory it uses (reshapes share)
  std::vector<size_t> offsets_;  // per storage node: place in the arena
  size_t arena_bytes_ = 0, scratch_offset_ = 0;
};

Executable compile(const Graph& graph, const Backend& backend, ExecutionContext context);

}  // namespace kinora
