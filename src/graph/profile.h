// Where the time of a run goes.
#pragma once

#include <map>
#include <string>

#include "graph/executable.h"

namespace kinora {

// Runs `executable` once, step by step (Executable::profile), and lists its steps by operation and shapes, those that
// took longest first: "NAME: 1.234 ms in 5 kinds of steps", then a line for each kind with its share and its count.
std::string profile_table(const std::string& name, const Executable& executable,
                          const std::map<std::string, Tensor>& inputs);

}  // namespace kinora
