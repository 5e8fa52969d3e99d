// Places buffers with known lifetimes in one arena.
#pragma once

#include <cstddef>
#include <vector>

namespace kinora {

struct BufferLife {
  size_t bytes = 0;
  int first = 0, last = 0;  // steps between which the bytes must stay, both included
};

struct MemoryPlan {
  std::vector<size_t> offsets;  // one per buffer, multiples of 256
  size_t bytes = 0;
};

// Largest first, each at the lowest place free during its whole life (Pisarchyk & Lee, arXiv:2001.03288).
MemoryPlan plan_memory(const std::vector<BufferLife>& buffers);

}  // namespace kinora
