#include "format.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
// Everything below, and nothing above, is compiled for these instructions; the dispatcher asks the processor first.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own headers before 13
#endif
#define INLINE inline __attribute__((always_inline))
#include "simd_avx512.h"
//
#include "block.h"
//
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace minimemo {
const Kernels* avx512_kernels() { return &kKernels; }
}  // namespace minimemo
#else
namespace minimemo {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace minimemo
#endif
