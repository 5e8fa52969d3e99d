#include "cpu/simd.h"

namespace kinora::cpu {

const Simd& simd() {
  static const Simd* best = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      return &kSimdAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &kSimdAvx2;
    return &kSimdGeneric;
  }();
  return *best;
}

}  // namespace kinora::cpu
