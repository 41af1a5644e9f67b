#include "attention.h"

#if defined(__x86_64__)
#include <immintrin.h>
// Everything below, and nothing above, is compiled for these instructions; the dispatcher asks the processor first.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define INLINE inline __attribute__((always_inline))
#include "simd_avx2.h"

namespace minimemo {
namespace {
constexpr int kStrip = 4, kTileVectors = 2;  // 8 sums, 2 cells and one broadcast in 16 registers
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return fused_add(a, b, c); }
INLINE Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline void choose_way(const Attention& job, const Segment& s, int64_t piece);
}  // namespace
}  // namespace minimemo
#include "attention_lanes.h"
//
#include "attention_kernels.h"

namespace minimemo {
namespace {
inline void choose_way(const Attention& job, const Segment& s, int64_t piece) { run_way<FloatWay>(job, s, piece); }
constexpr AttentionKernels kAttention{kName, run, merge};
}  // namespace
}  // namespace minimemo
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace minimemo {
const AttentionKernels* avx2_attention() { return &kAttention; }
}  // namespace minimemo
#else
namespace minimemo {
const AttentionKernels* avx2_attention() { return nullptr; }
}  // namespace minimemo
#endif
