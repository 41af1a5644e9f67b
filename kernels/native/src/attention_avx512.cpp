#if defined(__x86_64__)
#include "attention.h"
#include "format.h"
#include "target.h"

TARGET_BEGIN(AVX512)
#include "attention_simd512.h"
//
#include "attention_packed.h"

namespace minimemo {
namespace {

inline void run(const Attention& job, int64_t piece) {
  const Segment& s = segment_of(job, piece);
  if (s.store >= kStorePacked8 && job.dim % 16 == 0)
    run_way<PackedWay>(job, s, piece);
  else
    run_way<FloatWay>(job, s, piece);
}

constexpr AttentionKernels kAttention{kName, run, merge};

}  // namespace
TARGET_END
const AttentionKernels* avx512_attention() { return &kAttention; }
}  // namespace minimemo
#endif
