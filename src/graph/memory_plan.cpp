#include "graph/memory_plan.h"

#include <algorithm>
#include <numeric>

namespace kinora {

// What devices align their allocations to.
static size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

MemoryPlan plan_memory(const std::vector<BufferLife>& buffers) {
  MemoryPlan plan;
  plan.offsets.assign(buffers.size(), 0);
  std::vector<size_t> order(buffers.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return buffers[a].bytes > buffers[b].bytes; });

  std::vector<size_t> placed;  // sorted by offset
  for (size_t i : order) {
    size_t need = rounded(buffers[i].bytes);
    size_t offset = 0;
    for (size_t j : placed) {
      bool apart = buffers[j].last < buffers[i].first || buffers[i].last < buffers[j].first;
      if (apart) continue;
      if (plan.offsets[j] >= offset + need) break;
      offset = std::max(offset, plan.offsets[j] + rounded(buffers[j].bytes));
    }
    plan.offsets[i] = offset;
    plan.bytes = std::max(plan.bytes, offset + need);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](size_t a, size_t b) { return plan.offsets[a] < plan.offsets[b]; }),
                  i);
  }
  return plan;
}

}  // namespace kinora
