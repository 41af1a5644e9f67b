#if defined(__x86_64__)
#include "attention.h"
#include "format.h"
#include "target.h"

TARGET_BEGIN(AVX2)
#include "simd_avx2.h"
//
#include "attention_plain.h"
TARGET_END

namespace minimemo {
const AttentionKernels* avx2_attention() { return &kAttention; }
}  // namespace minimemo
#endif
