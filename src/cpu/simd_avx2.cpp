#define KINORA_SIMD kSimdAvx2
#define KINORA_SIMD_NAME "avx2"
#include "cpu/simd_body.h"
