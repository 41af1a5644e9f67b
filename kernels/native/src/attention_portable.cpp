#include "simd_portable.h"
//
#include "attention_plain.h"

namespace minimemo {
const AttentionKernels* portable_attention() { return &kAttention; }
}  // namespace minimemo
