#include "format.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
// Everything below, and nothing above, is compiled for these instructions; the dispatcher asks the processor first.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define INLINE inline __attribute__((always_inline))
#include "simd_avx2.h"
//
#include "block_avx2.h"
//
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace minimemo {
const Kernels* avx2_kernels() { return &kKernels; }
}  // namespace minimemo
#else
namespace minimemo {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace minimemo
#endif
