#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <tuple>

#include "core/log.h"
#include "graph/executable.h"
#include "graph/memory_plan.h"
#include "graph/rewrite.h"
#include "graph/views.h"

namespace kinora {
namespace {

// Results of constant nodes larger than this are computed at each run instead of kept; on a device, they are computed
// there once, unless weights come and go.
constexpr size_t kFoldLimit = size_t{8} << 20, kSmallFoldLimit = size_t{64} << 10;
// Who looks into a run is told of compiling that takes so many seconds, and of so many bytes of weights that went to a
// device.
constexpr double kLoggedSeconds = 0.1;
constexpr size_t kLoggedBytes = size_t{16} << 20;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool can(const Kernel& kernel, const StepSpec& spec) {
  if (kernel.op != spec.node.op) return false;
  if (!kernel.strided_out && !is_contiguous(spec.output().shape, spec.out_strides)) return false;
  for (size_t i = 0; i < spec.inputs.size() && !kernel.strided; ++i) {
    if (!is_contiguous(spec.inputs[i].shape, spec.strides[i])) return false;
  }
  return !kernel.supports || kernel.supports(spec);
}

// The row for a node: of the wanted variant where there is one that can, else as Kernel says. Null, or a row without
// `make`: the node's decomposition.
const Kernel* find_kernel(const Backend& backend, const StepSpec& spec, const std::string& wanted = "auto") {
  const Kernel* found = nullptr;
  for (const Kernel& kernel : backend.kernels) {
    if (wanted != "auto" && kernel.variant == wanted && can(kernel, spec)) return &kernel;
  }
  for (const Kernel& kernel : backend.kernels) {
    if (!can(kernel, spec)) continue;
    if (!kernel.prefers || kernel.prefers(spec)) {
      found = &kernel;
      break;
    }
    if (!found) found = &kernel;
  }
  if (found && !found->variant.empty() && wanted != "auto") {
    log(LogLevel::debug, std::string(spec.node.op->name) + " " + spec.node.spec.shape.str() + ": '" + wanted +
                             "' does not do it here, '" + std::string(found->variant) + "' takes its place");
  }
  return found;
}

StepSpec spec_of(const Graph& graph, const Node& node, int threads) {
  StepSpec spec{.node = node, .inputs = {}, .values = {}, .threads = threads};
  for (NodeId id : node.inputs) {
    const Node& input = graph.node(id);
    spec.inputs.push_back(input.spec);
    spec.values.push_back(input.value.defined() ? &input.value : nullptr);
    spec.strides.push_back(contiguous_strides(input.spec.shape));
  }
  spec.out_strides = contiguous_strides(node.spec.shape);
  return spec;
}

bool is_reshape(const Node& node) { return node.op->name == "reshape"; }
// Its result is its input's memory.
bool never_runs(const Node& node) { return is_reshape(node) || node.op->name == "part"; }

// Undefined when the backend has no kernel for it.
Tensor evaluate(const Node& node, const StepSpec& spec, const Backend& backend, ThreadPool& pool) {
  if (is_reshape(node)) return spec.values[0]->reshaped(node.spec.shape);
  const Kernel* kernel = find_kernel(backend, spec);
  if (!kernel || !kernel->make) return Tensor();
  Step step = kernel->make(spec);
  Tensor result(node.spec.shape, node.spec.dtype);
  auto scratch = allocate_bytes(step.scratch_bytes);
  std::vector<const void*> in;
  for (const Tensor* value : spec.values) in.push_back(value->raw());
  step.run({in, result.raw(), scratch.get(), pool});
  return result;
}

// Computes nodes whose inputs are all known now, when the result is small.
Graph fold_constants(const Graph& graph, const Backend& backend, size_t limit, ThreadPool& pool) {
  return rewrite(graph, [&](Graph& target, const Node& node, std::span<const Value> inputs) {
    if (is_leaf(node)) return Value();
    if (!is_reshape(node) && node.spec.bytes() > limit) return Value();
    StepSpec spec{.node = node, .inputs = {}, .values = {}, .threads = pool.size()};
    std::string name;
    for (const Value& input : inputs) {
      const Node& source = target.node(input.id());
      if (!source.value.defined()) return Value();
      spec.inputs.push_back(source.spec);
      spec.values.push_back(&source.value);
      spec.strides.push_back(contiguous_strides(source.spec.shape));
      if (source.op == &kParameterOp) name = source.name;
    }
    spec.out_strides = contiguous_strides(node.spec.shape);
    Tensor result = evaluate(node, spec, backend, pool);
    if (!result.defined()) return Value();
    return name.empty() ? target.constant(result) : target.parameter(name, result);
  });
}

}  // namespace

class Compiler {
 public:
  Compiler(const Graph& graph, const Backend& backend, ExecutionContext context) : backend_(backend) {
    exe_.context_ = std::move(context);
    if (!exe_.context_.pool) exe_.context_.pool = std::make_shared<ThreadPool>();
    if (!exe_.context_.arena) exe_.context_.arena = std::make_shared<Arena>(exe_.context_.device);
    threads_ = exe_.context_.pool->size();
    exe_.graph_ = std::make_unique<Graph>(simplify(graph));
    count_ = exe_.graph_->nodes().size();
    exe_.streamed_.assign(count_, false);
    find_fixed();
    auto has = [&](const Node& node, bool Kernel::*property) {
      return std::any_of(backend.kernels.begin(), backend.kernels.end(), [&](const Kernel& k) {
        if (k.op != node.op || !(k.*property)) return false;
        if (!k.supports) return true;
        StepSpec spec = spec_of(g(), node, threads_);
        spec.placed = false;
        return k.supports(spec);
      });
    };
    views_ = find_views(g(), {[&](const Node& node) { return has(node, &Kernel::strided); },
                              [&](const Node& node) { return has(node, &Kernel::strided_out); },
                              [&](NodeId id) { return fixed_[static_cast<size_t>(id)]; }});
    exe_.stream_ = plan_stream(read_parameters(), exe_.context_.stream);
    for (const StreamPlan::Chunk& chunk : exe_.stream_.chunks) {
      for (NodeId id : chunk.parameters) exe_.streamed_[size_t(id)] = true;
    }
    find_fixed();  // less than before; views of what is fixed no longer would need another plan
  }

  Executable finish() {
    if (size_t budget = exe_.context_.stream.budget; budget && exe_.stream_.held > budget) {
      fail(ErrorKind::resource, "the weights need " + std::to_string((exe_.stream_.held >> 20) + 1) +
                                    " MiB at a time, but only " + std::to_string(budget >> 20) +
                                    " MiB are left for them");
    }
    lay_out();
    if (exe_.context_.device) settle_fixed();
    plan();
    return std::move(exe_);
  }

  // What finish() would make: bytes of weights, bytes of the arena without a window.
  std::pair<size_t, size_t> measure() {
    lay_out();
    size_t weights = exe_.stream_.held;
    if (exe_.context_.device) {
      find_kept();
      size_t there = exe_.stream_.window;
      for (size_t i = 0; i < count_; ++i) there += fixed_[i] && kept_[i] ? node(i).spec.bytes() : 0;
      weights = std::max(weights, there);
    }
    plan();
    return {weights, exe_.arena_bytes_ - (exe_.context_.device ? exe_.stream_.window : 0)};
  }

 private:
  void lay_out() {
    find_lives();
    exe_.storage_ = views_.storage;
    for (size_t i = 0; i < count_; ++i) {
      exe_.offsets_.push_back(static_cast<size_t>(views_.offset[i]) * dtype_size(g().nodes()[i].spec.dtype));
    }
  }

  // On the host only pages of files can come and go, and not where a packed copy takes their place; what cannot is read
  // for ever.
  std::vector<ReadParameter> read_parameters() const {
    constexpr NodeId kNobody = -1;
    std::vector<NodeId> first(count_, kNobody), last(count_, kNobody);
    for (size_t i = 0; i < count_; ++i) {
      if (views_.idle[i]) continue;
      for (NodeId input : node(i).inputs) {
        if (first[home(input)] == kNobody) first[home(input)] = static_cast<NodeId>(i);
        last[home(input)] = static_cast<NodeId>(i);
      }
    }
    for (const auto& [name, id] : g().outputs()) last[home(id)] = static_cast<NodeId>(INT32_MAX);
    std::vector<ReadParameter> parameters;
    for (size_t i = 0; i < count_; ++i) {
      const Tensor& value = node(i).value;
      if (node(i).op != &kParameterOp || first[i] == kNobody) continue;
      bool moves = exe_.context_.device || (value.is_mapped() && !value.repacked());
      parameters.push_back({static_cast<NodeId>(i), value.bytes(), moves ? first[i] : 0, moves ? last[i] : INT32_MAX});
    }
    return parameters;
  }

  const Graph& g() const { return *exe_.graph_; }
  const Node& node(size_t i) const { return g().nodes()[i]; }
  size_t home(NodeId id) const { return static_cast<size_t>(views_.storage[static_cast<size_t>(id)]); }

  Graph simplify(const Graph& graph) {
    Graph lowered = lower(apply_passes(graph, backend_), [&](const Graph& source, const Node& n) {
      if (never_runs(n)) return false;
      StepSpec spec = spec_of(source, n, threads_);
      spec.placed = false;
      const Kernel* kernel = find_kernel(backend_, spec, exe_.context_.variant);
      if (kernel && !kernel->make) ++exe_.variants_[std::string(kernel->variant)];
      return !kernel || !kernel->make;
    });
    // What is folded stays, which weights that come and go must not.
    bool small = exe_.context_.device || exe_.context_.stream.budget;
    return fold_constants(lowered, backend_.host ? *backend_.host : backend_, small ? kSmallFoldLimit : kFoldLimit,
                          *exe_.context_.pool);
  }

  // Which nodes depend on weights and constants alone, on a device.
  void find_fixed() {
    fixed_.assign(count_, false);
    for (size_t i = 0; i < count_; ++i) {
      const Node& n = node(i);
      fixed_[i] = exe_.context_.device && n.op != &kInputOp && !exe_.streamed_[i] &&
                  std::all_of(n.inputs.begin(), n.inputs.end(), [&](NodeId id) { return fixed_[size_t(id)]; });
    }
  }

  // Until which step each node's bytes are needed.
  void find_lives() {
    last_.assign(count_, -1);
    for (size_t i = 0; i < count_; ++i) {
      for (NodeId input : node(i).inputs) last_[home(input)] = static_cast<int>(i);
    }
    for (const auto& [name, id] : g().outputs()) last_[home(id)] = static_cast<int>(count_);
  }

  StepSpec spec(size_t i) const {
    StepSpec s = spec_of(g(), node(i), threads_);
    for (size_t k = 0; k < s.strides.size(); ++k) s.strides[k] = views_.strides[size_t(node(i).inputs[k])];
    s.out_strides = views_.strides[i];
    return s;
  }

  Step make_step(size_t i) {
    exe_.context_.throw_if_stopped();  // it may pack weights
    StepSpec s = spec(i);
    const Kernel* kernel = find_kernel(backend_, s, exe_.context_.variant);
    check(kernel && kernel->make, "a kernel vanished");
    if (!kernel->variant.empty()) ++exe_.variants_[std::string(kernel->variant)];
    return kernel->make(s);
  }

  // What steps read of the weights and of what depends on them alone.
  void find_kept() {
    kept_.assign(count_, false);
    for (size_t i = 0; i < count_; ++i) {
      for (NodeId input : node(i).inputs) {
        if (!fixed_[i] && fixed_[size_t(input)]) kept_[home(input)] = true;
      }
    }
    for (const auto& [name, id] : g().outputs()) kept_[home(id)] = true;
  }

  // Puts weights on the device, and computes there what depends on them alone. What nothing else reads goes again.
  void settle_fixed() {
    exe_.fixed_.resize(count_);
    std::vector<std::string> keys(count_);
    for (size_t i = 0; i < count_; ++i) {
      if (fixed_[i]) keys[i] = key(i, keys);
    }
    find_kept();
    Clock::time_point start = Clock::now();
    for (size_t i = 0; i < count_; ++i) {
      if (!fixed_[i] || !kept_[i]) continue;
      exe_.context_.throw_if_stopped();
      fix(i, keys);
    }
    if (uploaded_ >= kLoggedBytes) {
      exe_.context_.device->wait();
      double seconds = seconds_since(start);
      char text[96];
      std::snprintf(text, sizeof text, "put %zu MiB of weights on the device in %.2f s (%.1f GB/s)", uploaded_ >> 20,
                    seconds, static_cast<double>(uploaded_) / seconds / 1e9);
      log(LogLevel::info, text);
    }
    for (size_t i = 0; i < count_; ++i) {
      if (!kept_[i]) exe_.fixed_[i].reset();
    }
  }

  std::string key(size_t i, const std::vector<std::string>& keys) const {
    const Node& n = node(i);
    char text[64];
    if (n.value.defined()) {
      std::snprintf(text, sizeof text, "%p:%zu", n.value.raw(), n.value.bytes());
      return text;
    }
    std::string result = std::string(n.op->name) + " " + n.attrs.str() + " " + n.spec.shape.str() + " " +
                         std::string(dtype_name(n.spec.dtype)) + "(";
    for (NodeId input : n.inputs) result += keys[size_t(input)] + ",";
    return result + ")";
  }

  void fix(size_t i, const std::vector<std::string>& keys) {
    if (exe_.fixed_[i]) return;
    Device& device = *exe_.context_.device;
    const Node& n = node(i);
    exe_.fixed_[i] = device.shared(keys[i], n.spec.bytes(), [&](void* memory) {
      if (n.value.defined()) {
        uploaded_ += n.spec.bytes();
        return device.upload(memory, n.value.raw(), n.spec.bytes(), exe_.context_.pool.get());
      }
      std::vector<const void*> in;
      for (NodeId input : n.inputs) {
        fix(home(input), keys);
        in.push_back(static_cast<std::byte*>(exe_.fixed_[home(input)].get()) + exe_.offsets_[size_t(input)]);
      }
      Step step = make_step(i);
      std::shared_ptr<void> scratch = device.allocate(step.scratch_bytes);
      step.run({in, memory, static_cast<std::byte*>(scratch.get()), *exe_.context_.pool, device.queue()});
      device.wait();  // memory that is given back returns to the device then; else the pool grows by half a gigabyte
      for (NodeId input : n.inputs) {  // nobody reads these again
        size_t source = home(input);
        if (last_[source] == static_cast<int>(i) && !kept_[source]) exe_.fixed_[source].reset();
      }
    });
  }

  // Whether step i may write over its first input.
  bool overwrites(size_t i, const Step& step) const {
    const Node& n = node(i);
    if (!step.in_place || n.inputs.empty() || views_.storage[i] != static_cast<NodeId>(i)) return false;
    size_t first = home(n.inputs[0]);
    return !is_leaf(node(first)) && !fixed_[first] && last_[first] == static_cast<int>(i) &&
           node(first).spec.bytes() == n.spec.bytes() &&
           std::count_if(n.inputs.begin(), n.inputs.end(), [&](NodeId id) { return home(id) == first; }) == 1;
  }

  void plan() {
    std::vector<BufferLife> lives;
    std::vector<int> owner(count_, -1);  // per storage node: index into lives
    size_t scratch = 0;
    for (size_t i = 0; i < count_; ++i) {
      if (views_.idle[i] || fixed_[i]) continue;
      bool input = node(i).op == &kInputOp;
      if (is_leaf(node(i)) && !(input && exe_.context_.device)) continue;
      bool reuse = false;
      if (!input) {
        Step step = make_step(i);
        scratch = std::max(scratch, step.scratch_bytes);
        reuse = overwrites(i, step);
        exe_.steps_.push_back({static_cast<NodeId>(i), std::move(step)});
      }
      size_t place = home(static_cast<NodeId>(i));
      if (reuse) {
        owner[i] = owner[home(node(i).inputs[0])];
        lives[size_t(owner[i])].last = last_[i];
      } else if (owner[place] < 0) {  // of a concat's parts, the first one opens its life
        owner[place] = static_cast<int>(lives.size());
        // A device's inputs are all written before the first step.
        lives.push_back({node(place).spec.bytes(), input ? 0 : static_cast<int>(i),
                         std::max({last_[place], last_[i], static_cast<int>(place)})});
      }
    }
    MemoryPlan memory = plan_memory(lives);
    for (size_t i = 0; i < count_; ++i) {
      if (owner[i] >= 0) exe_.offsets_[i] = memory.offsets[size_t(owner[i])];
    }
    exe_.scratch_offset_ = memory.bytes;
    exe_.arena_bytes_ = memory.bytes + scratch;
    if (!exe_.context_.device || exe_.stream_.chunks.empty()) return;
    size_t window = (exe_.arena_bytes_ + 255) / 256 * 256;
    exe_.arena_bytes_ = window + exe_.stream_.window;
    for (const StreamPlan::Chunk& chunk : exe_.stream_.chunks) {
      for (size_t k = 0; k < chunk.parameters.size(); ++k)
        exe_.offsets_[size_t(chunk.parameters[k])] = window + chunk.offsets[k];
    }
  }

  const Backend& backend_;
  Executable exe_;
  int threads_ = 1;
  size_t count_ = 0, uploaded_ = 0;
  Views views_;
  std::vector<int> last_;
  std::vector<bool> fixed_, kept_;
};

Graph apply_passes(const Graph& graph, const Backend& backend) {
  const Graph* current = &graph;
  std::unique_ptr<Graph> owned;
  for (auto pass : backend.passes) {
    owned = std::make_unique<Graph>(pass(*current));
    current = owned.get();
  }
  return owned ? std::move(*owned)
               : rewrite(graph, [](Graph&, const Node&, std::span<const Value>) { return Value(); });
}

Executable compile(const Graph& graph, const Backend& backend, ExecutionContext context) {
  Clock::time_point start = Clock::now();
  Executable executable = Compiler(graph, backend, std::move(context)).finish();
  if (double seconds = seconds_since(start); seconds >= kLoggedSeconds) {
    char text[64];
    std::snprintf(text, sizeof text, "compiled %zu nodes in %.2f s", executable.graph().nodes().size(), seconds);
    log(LogLevel::info, text);
  }
  return executable;
}

MemoryNeed memory_need(const Graph& graph, const Backend& backend, ExecutionContext context) {
  MemoryNeed need;
  context.stream.budget = 0;
  std::tie(need.weights, need.working) = Compiler(graph, backend, context).measure();
  context.stream.budget = 1;
  std::tie(need.least_weights, need.streamed_working) = Compiler(graph, backend, context).measure();
  return need;
}

}  // namespace kinora
