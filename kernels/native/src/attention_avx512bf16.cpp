#include "attention.h"

#if defined(MINIMEMO_BFLOAT16)
#include <immintrin.h>
// Everything below, and nothing above, is compiled for these instructions; the dispatcher asks the processor first.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own headers before 13
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#define INLINE inline __attribute__((always_inline))
#include "attention_simd512.h"
//
#include "attention_bfloat16.h"
#include "attention_packed.h"

namespace minimemo {
namespace {
inline void choose_way(const Attention& job, const Segment& s, int64_t piece) {
  if (s.store == kStoreBfloat16 && job.dim % 16 == 0)
    run_way<Bfloat16Way>(job, s, piece);
  else if (s.store >= kStorePacked8 && job.dim % 16 == 0)
    run_way<PackedWay>(job, s, piece);
  else
    run_way<FloatWay>(job, s, piece);
}
constexpr AttentionKernels kAttention{"avx512bf16", run, merge};
}  // namespace
}  // namespace minimemo
#if defined(__clang__)
#pragma clang attribute pop
#endif

namespace minimemo {
const AttentionKernels* avx512bf16_attention() { return &kAttention; }
}  // namespace minimemo
#else
namespace minimemo {
const AttentionKernels* avx512bf16_attention() { return nullptr; }
}  // namespace minimemo
#endif
