#define KINORA_SIMD kSimdAvx512
#define KINORA_SIMD_NAME "avx512"
#include "cpu/simd_body.h"
