// What happens to a prompt before it is split into tokens.
#pragma once

#include <string>

#include "core/tensor.h"

namespace kinora {

// Python's str.lower().strip(), as diffusers applies it. Throws Error(input) on invalid UTF-8.
std::string preprocess_prompt(const std::string& prompt);

// Throws Error(input) unless the tensor has this shape: for noise that the caller brings.
void expect_shape_of(const Tensor& latents, const Shape& expected);

}  // namespace kinora
