// Running graphs on an NVIDIA GPU. The program starts without one: the driver and the libraries are looked for when a
// device is opened.
#pragma once

#include <memory>
#include <string>

#include "graph/executable.h"

namespace kinora::cuda {

// Empty when a GPU can be used, else one line that says what is missing.
std::string why_unavailable();

// Throws Error(usage) for an index that is not there, Error(resource) with why_unavailable().
std::shared_ptr<Device> open_device(int index = 0);

const Backend& backend();

// Whether the device in use multiplies 8-bit floats (compute capability 8.9 and later). Where it does not, the format
// fp8 still gives the same results, through wider products: slower than fp8-weights, which has as small weights.
bool has_fp8_products();

struct MemoryUse {
  size_t peak = 0, free = 0, total = 0;  // bytes: most ever held by this device object; as the driver sees it now
};
MemoryUse memory_use(Device& device);

// "NVIDIA H200, compute capability 9.0, driver 13.0".
std::string description(int index = 0);

}  // namespace kinora::cuda
