// The CPU as a backend: one table row per op it can do.
#pragma once

#include "graph/executable.h"

namespace kinora::cpu {

const Backend& backend();
// One line for reports: the instruction set of the own kernels and of oneDNN's.
std::string description();

}  // namespace kinora::cpu
