// Compiling a graph for a backend, and running it. All work that depends on shapes alone (decomposition of missing
// ops, folding of constants, memory plan, library plans) happens in compile(); run() only computes.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/quantize.h"
#include "core/threads.h"
#include "graph/device.h"
#include "graph/graph.h"
#include "graph/streaming.h"

namespace kinora {

// What a kernel may look at when it is made.
struct StepSpec {
  const Node& node;
  std::vector<TensorSpec> inputs;
  std::vector<const Tensor*> values;  // per input: its host tensor when it is a parameter or constant, else null
  int threads = 1;                    // size of the pool that will run it
  std::vector<Ints> strides = {};     // per input: elements between neighbours of each axis; see Kernel::strided
  Ints out_strides = {};              // the same of the output; see Kernel::strided_out
  bool placed = true;                 // false: where tensors lie is not known yet, so strides may still change

  const TensorSpec& output() const { return node.spec; }
};

struct StepArgs {
  std::span<const void* const> in;
  void* out;
  std::byte* scratch;  // 64-byte aligned (256 on a device), Step::scratch_bytes long
  ThreadPool& pool;
  void* queue = nullptr;  // of a device: steps only enqueue
};

struct Step {
  std::function<void(const StepArgs&)> run;
  size_t scratch_bytes = 0;
  bool in_place = false;  // may write its output over its first input
};

// One row of a backend's kernel table. `supports` null: everything that the op's own checks let through. Inputs are
// contiguous unless the kernel says `strided`: then each may be a slice of a larger tensor, given by StepSpec::strides,
// with the last axis contiguous. The output is contiguous unless the kernel says `strided_out`: then it may be some
// columns of a larger matrix, with evenly spaced rows that begin at multiples of 16 bytes (StepSpec::out_strides).
// Of an op's rows, the first is taken that supports a node and `prefers` it (null: it does), else the first that
// supports it; a caller may ask for the rows of one `variant` by name (ExecutionContext::variant).
struct Kernel {
  const OpDef* op;
  Step (*make)(const StepSpec& spec);  // null: this row stands for the op's decomposition
  bool (*supports)(const StepSpec& spec) = nullptr;
  bool strided = false;
  std::string_view variant = {};
  bool strided_out = false;
  bool (*prefers)(const StepSpec& spec) = nullptr;
};

struct Backend {
  std::string_view name;
  std::span<const Kernel> kernels;
  std::span<Graph (*const)(const Graph&)> passes = {};  // rewrites made before anything else, in this order
  const Backend* host = nullptr;  // of a device: what folds small constants; null: this backend itself
  // The format that weights stored in this one are to be read in: int8 and fp8 may become the same without quantizing
  // x. Null: any as it is.
  QuantFormat (*runnable)(QuantFormat format) = nullptr;
  // Of a device: quantizes weights there, with working memory for the largest of them that is held as long as the
  // result. Null: the host's quantize_matrix.
  Quantizer (*quantizer)(std::shared_ptr<Device> device, std::shared_ptr<ThreadPool> pool) = nullptr;
};

// Working memory that executables of one session share, one running at a time: it grows to the largest need.
class Arena {
 public:
  explicit Arena(std::shared_ptr<Device> device = nullptr) : device_(std::move(device)) {}
  std::byte* reserve(size_t bytes);  // uninitialised, 64-byte aligned (256 on a device); throws Error(resource)
  size_t size() const { return size_; }
  void release();  // gives the memory back; what was reserved is gone

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<void> memory_;
  size_t size_ = 0;
};

struct ExecutionContext {
  std::shared_ptr<ThreadPool> pool;
  std::shared_ptr<Arena> arena;
  const std::atomic<bool>* stop = nullptr;  // when it becomes true, compile() and run() throw Error(cancelled)
  std::shared_ptr<Device> device;           // null: the host
  std::string variant = "auto";             // of the kernels to take, where an op has several
  StreamOptions stream;                     // of the parameters of what is compiled with this context

  void throw_if_stopped() const {
    if (stop && stop->load(std::memory_order_relaxed)) fail(ErrorKind::cancelled, "stopped");
  }
};

// Where run() leaves its outputs.
enum class Keep { on_host, on_device };

class Executable {
 public:
  // Feeds inputs by name and returns the outputs by name, in tensors of their own. Throws Error(internal) for a missing
  // input or a wrong shape; Error(cancelled) when the context's stop flag is set. On a device, inputs may lie there
  // already, and a run that keeps its outputs there returns as soon as the work is enqueued.
  std::map<std::string, Tensor> run(const std::map<std::string, Tensor>& inputs, Keep keep = Keep::on_host) const;

  // Runs once and says how long each step took, in the order of the graph.
  struct StepTime {
    NodeId node;
    double seconds;
  };
  std::vector<StepTime> profile(const std::map<std::string, Tensor>& inputs) const;

  size_t arena_bytes() const { return arena_bytes_; }
  const StreamPlan& stream() const { return stream_; }  // its window lies in a device's arena
  const Graph& graph() const { return *graph_; }        // as compiled
  // How many nodes each named variant of a kernel computes.
  const std::map<std::string, int64_t>& variants() const { return variants_; }

 private:
  friend class Compiler;
  struct Planned {
    NodeId id;
    Step step;
  };
  std::vector<void*> bind(const std::map<std::string, Tensor>& inputs, std::byte* arena) const;
  void execute(std::span<void* const> memory, std::byte* arena) const;
  void run_step(const Planned& planned, std::span<void* const> memory, std::byte* arena) const;
  void run_steps(std::span<void* const> memory, std::byte* arena, const std::function<void()>& each = {}) const;

  std::unique_ptr<Graph> graph_;
  ExecutionContext context_;
  std::vector<Planned> steps_;
  std::vector<NodeId> storage_;  // per node: the node whose memory it uses (reshapes and slices may share)
  std::vector<size_t> offsets_;  // per node: bytes from the start of that memory; per storage node: place in the arena
  StreamPlan stream_;
  std::vector<bool> streamed_;                // per node: a parameter that comes and goes
  std::vector<std::shared_ptr<void>> fixed_;  // on a device, per node: weights, constants and what they alone give
  size_t arena_bytes_ = 0, scratch_offset_ = 0;
  std::map<std::string, int64_t> variants_;
  // On a device, what the first run recorded, and the arena that it is for.
  mutable std::unique_ptr<Device::Recording> recording_;
  mutable std::byte* recorded_arena_ = nullptr;
};

// The backend's rewrites alone, which compile() begins with; making them twice changes nothing more.
Graph apply_passes(const Graph& graph, const Backend& backend);

// Throws Error(resource) when the context's budget for parameters is less than streaming them needs.
Executable compile(const Graph& graph, const Backend& backend, ExecutionContext context);

// What an executable would take, in bytes, without making it: on a device nothing is allocated or copied.
struct MemoryNeed {
  size_t weights = 0, working = 0;                 // all parameters (or what they give on a device), and the arena
  size_t least_weights = 0, streamed_working = 0;  // the same when as many parameters as can be come and go
  size_t all() const { return weights + working; }
  size_t least() const { return std::min(all(), least_weights + streamed_working); }
};
MemoryNeed memory_need(const Graph& graph, const Backend& backend, ExecutionContext context);

}  // namespace kinora
