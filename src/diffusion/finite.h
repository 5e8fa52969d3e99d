// Results of a network that cannot be used.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include "core/tensor.h"

namespace kinora {

inline bool is_finite(const Tensor& tensor) {
  uint32_t odd = 0;  // an exponent of ones; without a way out of the loop it compiles to vectors
  for (float v : tensor.values<float>()) odd |= uint32_t{(std::bit_cast<uint32_t>(v) & 0x7f800000u) == 0x7f800000u};
  return !odd;
}

// Throws Error(model) saying that `what` gave it when a float32 tensor holds a NaN or an infinity.
inline void check_finite(const Tensor& tensor, const std::string& what) {
  if (!is_finite(tensor))
    fail(ErrorKind::model, what + " gave a value that is not finite (damaged weights, or try --dtype float32)");
}

}  // namespace kinora
