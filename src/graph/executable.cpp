#include "graph/executable.h"

#include <chrono>
#include <cstring>

namespace kinora {

std::byte* Arena::reserve(size_t bytes) {
  if (bytes > size_) {
    release();
    if (device_) {
      memory_ = device_->allocate(bytes);
    } else {
      auto host = allocate_bytes(bytes);
      memory_ = std::shared_ptr<void>(host, host.get());
    }
    size_ = bytes;
  }
  return static_cast<std::byte*>(memory_.get());
}

void Arena::release() {
  memory_.reset();
  size_ = 0;
}

static void expect_fits(const Tensor& tensor, const Node& node) {
  if (tensor.shape() == node.spec.shape && tensor.dtype() == node.spec.dtype) return;
  fail(ErrorKind::internal, "input '" + node.name + "' is " + std::string(dtype_name(tensor.dtype())) + " " +
                                tensor.shape().str() + ", expected " + std::string(dtype_name(node.spec.dtype)) + " " +
                                node.spec.shape.str());
}

// Where each node's bytes lie in this run; a device's inputs are copied there.
std::vector<void*> Executable::bind(const std::map<std::string, Tensor>& inputs, std::byte* arena) const {
  const Graph& g = *graph_;
  Device* device = context_.device.get();
  std::vector<void*> memory(g.nodes().size(), nullptr);
  for (size_t i = 0; i < g.nodes().size(); ++i) {
    const Node& node = g.nodes()[i];
    if (static_cast<size_t>(storage_[i]) != i) continue;
    if (node.op == &kInputOp) {
      auto found = inputs.find(node.name);
      if (found == inputs.end()) fail(ErrorKind::internal, "input '" + node.name + "' is missing");
      const Tensor& tensor = found->second;
      expect_fits(tensor, node);
      if (!device) {
        memory[i] = const_cast<void*>(tensor.raw());  // leaves are never written
        continue;
      }
      memory[i] = arena + offsets_[i];
      if (tensor.on_device()) {
        device->copy(memory[i], tensor.raw(), tensor.bytes());
      } else {
        device->upload(memory[i], tensor.raw(), tensor.bytes(), context_.pool.get());
      }
    } else if (device && fixed_[i]) {
      memory[i] = fixed_[i].get();
    } else if (device && streamed_[i]) {
      memory[i] = arena + offsets_[i];
    } else if (node.value.defined()) {
      memory[i] = const_cast<void*>(node.value.raw());
    } else {
      memory[i] = arena + offsets_[i];
    }
  }
  for (size_t i = 0; i < g.nodes().size(); ++i) {  // those that lie in another's
    auto home = static_cast<size_t>(storage_[i]);
    if (home != i) memory[i] = memory[home] ? static_cast<std::byte*>(memory[home]) + offsets_[i] : nullptr;
  }
  return memory;
}

std::map<std::string, Tensor> Executable::run(const std::map<std::string, Tensor>& inputs, Keep keep) const {
  const Graph& g = *graph_;
  Device* device = context_.device.get();
  std::byte* arena = context_.arena->reserve(arena_bytes_);
  std::vector<void*> memory = bind(inputs, arena);
  execute(memory, arena);

  std::map<std::string, Tensor> outputs;
  for (const auto& [name, id] : g.outputs()) {
    const TensorSpec& spec = g.node(id).spec;
    const void* bytes = memory[static_cast<size_t>(id)];
    if (device && keep == Keep::on_device) {
      std::shared_ptr<void> own = device->allocate(spec.bytes());
      device->copy(own.get(), bytes, spec.bytes());
      outputs.emplace(name, Tensor(spec.shape, spec.dtype, own, own.get(), Place::device));
      continue;
    }
    Tensor result(spec.shape, spec.dtype);
    if (result.bytes() && device) {
      device->download(result.raw(), bytes, result.bytes(), context_.pool.get());
    } else if (result.bytes()) {
      std::memcpy(result.raw(), bytes, result.bytes());
    }
    outputs.emplace(name, std::move(result));
  }
  return outputs;
}

void Executable::run_step(const Planned& planned, std::span<void* const> memory, std::byte* arena) const {
  context_.throw_if_stopped();
  std::vector<const void*> in;
  for (NodeId id : graph_->node(planned.id).inputs) in.push_back(memory[static_cast<size_t>(id)]);
  planned.step.run({in, memory[static_cast<size_t>(planned.id)], arena + scratch_offset_, *context_.pool,
                    context_.device ? context_.device->queue() : nullptr});
}

void Executable::run_steps(std::span<void* const> memory, std::byte* arena, const std::function<void()>& each) const {
  StreamRun stream(stream_, *graph_, memory, context_.device.get(), *context_.pool);
  for (const Planned& planned : steps_) {
    stream.before(planned.id);
    run_step(planned, memory, arena);
    stream.after(planned.id);
    if (each) each();
  }
}

void Executable::execute(std::span<void* const> memory, std::byte* arena) const {
  // What is streamed passes through the host, which no recording can hold.
  if (!context_.device || !stream_.chunks.empty()) return run_steps(memory, arena);
  context_.throw_if_stopped();
  // The addresses in a recording are those of its arena.
  if (!recording_ || recorded_arena_ != arena) {
    recording_ = context_.device->record([&] { run_steps(memory, arena); });
    recorded_arena_ = arena;
  }
  if (recording_) {
    recording_->enqueue();
  } else {
    run_steps(memory, arena);
  }
}

std::vector<Executable::StepTime> Executable::profile(const std::map<std::string, Tensor>& inputs) const {
  std::byte* arena = context_.arena->reserve(arena_bytes_);
  std::vector<void*> memory = bind(inputs, arena);
  execute(memory, arena);
  std::vector<StepTime> times;
  if (!context_.device) {
    auto start = std::chrono::steady_clock::now();
    run_steps(memory, arena, [&] {
      auto now = std::chrono::steady_clock::now();
      times.push_back({steps_[times.size()].id, std::chrono::duration<double>(now - start).count()});
      start = now;
    });
    return times;
  }
  // The device is kept busy while the steps are enqueued, so that it never waits for one. A run may write over its
  // inputs, so each has its own.
  for (int i = 0; i < 8; ++i) {
    bind(inputs, arena);
    execute(memory, arena);
  }
  bind(inputs, arena);
  std::vector<std::unique_ptr<Device::Mark>> marks;
  marks.push_back(context_.device->mark());
  run_steps(memory, arena, [&] { marks.push_back(context_.device->mark()); });
  context_.device->wait();
  for (size_t i = 0; i < steps_.size(); ++i) {
    times.push_back({steps_[i].id, marks[i + 1]->seconds_after(*marks[i])});
  }
  return times;
}

}  // namespace kinora
