// Which of cuBLASLt's plans is fastest for a product on this GPU, measured once and remembered in a file.
#pragma once

#include <string>

#include "cuda/cublaslt.h"

namespace kinora::cuda {

// The number of the suggestion to take, 0 (the library's favourite) where nothing is gained. Large products of 16 and 8
// bits are timed at their first use, for some milliseconds each, the largest for half a second; only a plan that gives
// the favourite's bits is taken, so results depend on no timing. KINORA_CUDA_TUNE=0: always the favourite.
int tuned_suggestion(const ProductShape& shape);

// Memory that a measurement may take beside all else, in bytes; 0: half of what is free. For the whole process.
void limit_tuning(size_t bytes);

// Where measurements are kept: kinora/products in $XDG_CACHE_HOME or ~/.cache; empty when neither is set.
std::string tuning_file();

}  // namespace kinora::cuda
