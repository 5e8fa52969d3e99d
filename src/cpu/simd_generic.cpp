#define KINORA_SIMD kSimdGeneric
#define KINORA_SIMD_NAME "generic"
#include "cpu/simd_body.h"
