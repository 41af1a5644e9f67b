#define INLINE inline __attribute__((always_inline))
#include "attention.h"
#include "simd_portable.h"

namespace minimemo {
namespace {
constexpr int kStrip = 4, kTileVectors = 1;
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }  // fused would be a call on plain x86-64
INLINE Floats maximum(Floats a, Floats b) {  // b where either is NaN
  for (int i = 0; i < kLanes; i++) b[i] = a[i] > b[i] ? a[i] : b[i];
  return b;
}
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
const AttentionKernels* portable_attention() { return &kAttention; }
}  // namespace minimemo
