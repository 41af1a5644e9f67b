#include "attention.h"

#if defined(MINIMEMO_BFLOAT16)
#include "format.h"
#include "target.h"

TARGET_BEGIN(AVX512_BFLOAT16)
#include "attention_simd512.h"
//
#include "attention_bfloat16.h"
#include "attention_packed.h"

namespace minimemo {
namespace {

inline void run(const Attention& job, int64_t piece) {
  const Segment& s = segment_of(job, piece);
  if (s.store == kStoreBfloat16 && job.dim % 16 == 0)
    run_way<Bfloat16Way>(job, s, piece);
  else if (s.store >= kStorePacked8 && job.dim % 16 == 0)
    run_way<PackedWay>(job, s, piece);
  else
    run_way<FloatWay>(job, s, piece);
}

constexpr AttentionKernels kAttention{"avx512bf16", run, merge};

}  // namespace
TARGET_END
const AttentionKernels* avx512bf16_attention() { return &kAttention; }
}  // namespace minimemo
#endif
