#include "graph/executable.h"

#include <algorithm>
#include <cstring>

#include "graph/memory_plan.h"
#include "graph/rewrite.h"

namespace kinora {
namespace {

// Results of constant nodes larger than this are computed at each run instead of kept.
constexpr size_t kFoldLimit = size_t{8} << 20;

const Kernel* find_kernel(const Backend& backend, const StepSpec& spec) {
  for (const Kernel& kernel : backend.kernels) {
    if (kernel.op == spec.node.op && (!kernel.supports || kernel.supports(spec))) return &kernel;
  }
  return nullptr;
}

StepSpec spec_of(const Graph& graph, const Node& node, int threads) {
  StepSpec spec{.node = node, .inputs = {}, .values = {}, .threads = threads};
  for (NodeId id : node.inputs) {
    const Node& input = graph.node(id);
    spec.inputs.push_back(input.spec);
    spec.values.push_back(input.value.defined() ? &input.value : nullptr);
  }
  return spec;
}

bool is_reshape(const Node& node) { return node.op->name == "reshape"; }

Tensor evaluate(const Node& node, const StepSpec& spec, const Backend& backend, ThreadPool& pool) {
  if (is_reshape(node)) return spec.values[0]->reshaped(node.spec.shape);
  Step step = find_kernel(backend, spec)->make(spec);
  Tensor result(node.spec.shape, node.spec.dtype);
  auto scratch = allocate_bytes(step.scratch_bytes);
  std::vector<const void*> in;
  for (const Tensor* value : spec.values) in.push_back(value->raw());
  step.run({in, result.raw(), scratch.get(), pool});
  return result;
}

// Computes nodes whose inputs are all known now, when the result is small.
Graph fold_constants(const Graph& graph, const Backend& backend, ThreadPool& pool) {
  return rewrite(graph, [&](Graph& target, const Node& node, std::span<const Value> inputs) {
    if (is_leaf(node)) return Value();
    if (!is_reshape(node) && node.spec.bytes() > kFoldLimit) return Value();
    StepSpec spec{.node = node, .inputs = {}, .values = {}, .threads = pool.size()};
    std::string name;
    for (const Value& input : inputs) {
      const Node& source = target.node(input.id());
      if (!source.value.defined()) return Value();
      spec.inputs.push_back(source.spec);
      spec.values.push_back(&source.value);
      if (source.op == &kParameterOp) name = source.name;
    }
    Tensor result = evaluate(node, spec, backend, pool);
    return name.empty() ? target.constant(result) : target.parameter(name, result);
  });
}

}  // namespace

std::byte* Arena::reserve(size_t bytes) {
  if (bytes > size_) {
    memory_.reset();
    size_ = 0;
    memory_ = allocate_bytes(bytes);
    size_ = bytes;
  }
  return memory_.get();
}

void Arena::release() {
  memory_.reset();
  size_ = 0;
}

Executable compile(const Graph& graph, const Backend& backend, ExecutionContext context) {
  if (!context.pool) context.pool = std::make_shared<ThreadPool>();
  if (!context.arena) context.arena = std::make_shared<Arena>();
  int threads = context.pool->size();
  Graph lowered = lower(graph, [&](const Graph& g, const Node& node) {
    return !is_reshape(node) && !find_kernel(backend, spec_of(g, node, threads));
  });

  Executable exe;
  exe.context_ = context;
  exe.graph_ = std::make_unique<Graph>(fold_constants(lowered, backend, *context.pool));
  const Graph& g = *exe.graph_;
  size_t count = g.nodes().size();

  std::vector<int> last(count, -1);
  exe.storage_.resize(count);
  for (size_t i = 0; i < count; ++i) {
    exe.storage_[i] =
        is_reshape(g.nodes()[i]) ? exe.storage_[static_cast<size_t>(g.nodes()[i].inputs[0])] : static_cast<NodeId>(i);
    for (NodeId input : g.nodes()[i].inputs) {
      last[static_cast<size_t>(exe.storage_[static_cast<size_t>(input)])] = static_cast<int>(i);
    }
  }
  for (const auto& [name, id] : g.outputs())
    last[static_cast<size_t>(exe.storage_[static_cast<size_t>(id)])] = static_cast<int>(count);

  std::vector<BufferLife> lives;
  std::vector<NodeId> owners(count, -1);  // per storage node: index into lives
  size_t scratch = 0;
  for (size_t i = 0; i < count; ++i) {
    const Node& node = g.nodes()[i];
    if (is_leaf(node) || is_reshape(node)) continue;
    StepSpec spec = spec_of(g, node, threads);
    Step step = find_kernel(backend, spec)->make(spec);
    scratch = std::max(scratch, step.scratch_bytes);
    NodeId first = node.inputs.empty() ? -1 : exe.storage_[static_cast<size_t>(node.inputs[0])];
    bool reuse = step.in_place && first >= 0 && !is_leaf(g.node(first)) &&
                 last[static_cast<size_t>(first)] == static_cast<int>(i) &&
                 g.node(first).spec.bytes() == node.spec.bytes() &&
                 std::count_if(node.inputs.begin(), node.inputs.end(),
                               [&](NodeId id) { return exe.storage_[static_cast<size_t>(id)] == first; }) == 1;
    if (reuse) {
      owners[i] = owners[static_cast<size_t>(first)];
      lives[static_cast<size_t>(owners[i])].last = last[i];
    } else {
      owners[i] = static_cast<NodeId>(lives.size());
      lives.push_back({node.spec.bytes(), static_cast<int>(i), std::max(last[i], static_cast<int>(i))});
    }
    exe.steps_.push_back({static_cast<NodeId>(i), std::move(step)});
  }
  MemoryPlan plan = plan_memory(lives);
  exe.offsets_.assign(count, 0);
  for (size_t i = 0; i < count; ++i) {
    if (owners[i] >= 0) exe.offsets_[i] = plan.offsets[static_cast<size_t>(owners[i])];
  }
  exe.scratch_offset_ = plan.bytes;
  exe.arena_bytes_ = plan.bytes + scratch;
  return exe;
}

std::map<std::string, Tensor> Executable::run(const std::map<std::string, Tensor>& inputs) const {
  const Graph& g = *graph_;
  std::byte* arena = context_.arena->reserve(arena_bytes_);
  std::vector<void*> memory(g.nodes().size(), nullptr);
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& node = g.nodes()[i];
    if (node.op == &kInputOp) {
      auto found = inputs.find(node.name);
      if (found == inputs.end()) fail(ErrorKind::internal, "input '" + node.name + "' is missing");
      const Tensor& tensor = found->second;
      if (!(tensor.shape() == node.spec.shape) || tensor.dtype() != node.spec.dtype) {
        fail(ErrorKind::internal, "input '" + node.name + "' is " + std::string(dtype_name(tensor.dtype())) + " " +
                                      tensor.shape().str() + ", expected " + std::string(dtype_name(node.spec.dtype)) +
                                      " " + node.spec.shape.str());
      }
      memory[i] = const_cast<void*>(tensor.raw());  // leaves are never written
    } else if (node.value.defined()) {
      memory[i] = const_cast<void*>(node.value.raw());
    } else if (storage_[i] == static_cast<NodeId>(i)) {
      memory[i] = arena + offsets_[i];
    } else {
      memory[i] = memory[static_cast<size_t>(storage_[i])];
    }
  }
  std::vector<const void*> in;
  for (const Planned& planned : steps_) {
    if (context_.stop && context_.stop->load(std::memory_order_relaxed)) fail(ErrorKind::cancelled, "stopped");
    in.clear();
    for (NodeId id : g.node(planned.id).inputs) in.push_back(memory[static_cast<size_t>(id)]);
    planned.step.run({in, memory[static_cast<size_t>(planned.id)], arena + scratch_offset_, *context_.pool});
  }
  std::map<std::string, Tensor> outputs;
  for (const auto& [name, id] : g.outputs()) {
    Tensor result(g.node(id).spec.shape, g.node(id).spec.dtype);
    if (result.bytes()) std::memcpy(result.raw(), memory[static_cast<size_t>(id)], result.bytes());
    outputs.emplace(name, std::move(result));
  }
  return outputs;
}

}  // namespace kinora
