// A limit on memory: what each component of a session takes, whether that fits, and how much is left for weights that
// come and go.
#pragma once

#include <string>
#include <vector>

#include "diffusion/backends.h"

namespace kinora {

// "12GB" (decimal), "12GiB", "900MB" or a number of bytes. Throws Error(usage).
size_t parse_bytes(const std::string& text);
std::string describe_bytes(size_t bytes);  // "11.2 GB"

struct ComponentMemory {
  std::string name;
  MemoryNeed need;
  size_t beside = 0;  // bytes of the host that its inputs and results take; none of the device's
};

// Of this process so far on the host; of a device nothing, as a limit there is one of what Kinora itself takes.
size_t memory_in_use(const Runtime& runtime);

// Bytes of weights that the component may hold at a time under `limit`: 0 when all fit, else a budget for streaming.
// Throws Error(resource) with what is needed and `advice` when even that does not fit.
size_t weights_budget(const ComponentMemory& component, size_t limit, const Runtime& runtime,
                      const std::string& advice);

}  // namespace kinora
