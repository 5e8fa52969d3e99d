// Parameters that come and go while an executable runs, for weights larger than the memory that they may take. Those
// that a few consecutive steps read form a chunk; each chunk is brought while the steps of the one before are at work.
// Chunks that there is room for stay, evenly spread, so that bringing the others keeps up with the work.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "core/threads.h"
#include "graph/device.h"
#include "graph/graph.h"

namespace kinora {

struct StreamOptions {
  size_t budget = 0;                   // bytes of parameters held at a time; 0: all of them
  size_t chunk = size_t{64} << 20;     // bytes brought together, unless one parameter is larger
  size_t smallest = size_t{64} << 10;  // smaller parameters always stay
};

// A parameter and the first and the last node that read it.
struct ReadParameter {
  NodeId id;
  size_t bytes;
  NodeId first, last;
};

struct StreamPlan {
  struct Chunk {
    std::vector<NodeId> parameters;
    std::vector<size_t> offsets;  // of each in the window
    size_t bytes = 0;
    NodeId begin = 0, first = 0, last = 0;  // the node before which it is brought, and those that read it
  };
  std::vector<Chunk> chunks;  // that come and go, in the order of `begin` and of `first`
  size_t window = 0;          // bytes of memory for them: no two that are there together share any
  size_t held = 0;            // bytes at a time: the window, and all parameters that stay
};

// Nothing is streamed when everything fits into the budget. A budget that is too small gives the plan that needs least.
StreamPlan plan_stream(std::vector<ReadParameter> parameters, const StreamOptions& options);

// Carries out a plan beside the steps of one run. On a device, parameters are copied into the window through its second
// queue; on the host, their pages are asked for in time and given back after.
class StreamRun {
 public:
  // `memory`: where each node's bytes lie. `device` null: the host.
  StreamRun(const StreamPlan& plan, const Graph& graph, std::span<void* const> memory, Device* device, ThreadPool& pool)
      : plan_(plan), graph_(graph), memory_(memory), device_(device), pool_(pool), gone_(plan.chunks.size()) {}
  void before(NodeId node);
  void after(NodeId node);

 private:
  void bring(const StreamPlan::Chunk& chunk);

  const StreamPlan& plan_;
  const Graph& graph_;
  std::span<void* const> memory_;
  Device* device_;
  ThreadPool& pool_;
  size_t brought_ = 0, awaited_ = 0;                  // chunks, from the first
  std::vector<std::unique_ptr<Device::Mark>> marks_;  // of each brought
  std::vector<bool> gone_;
};

}  // namespace kinora
