// Attention of variants that compute in float32 and have no quick way to look across a vector's lanes.
#pragma once

#include "attention.h"

namespace minimemo {
namespace {

INLINE float largest_of(Floats v) {
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  float largest = lanes[0];
  for (int i = 1; i < kLanes; i++) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

INLINE float sum_of(Floats v) {
  alignas(64) float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

INLINE bool transpose_tokens(const uint8_t*, int64_t, int, int, uint32_t*) { return false; }

}  // namespace
}  // namespace minimemo

#include "attention_kernels.h"  // over the functions above

namespace minimemo {
namespace {

inline void run(const Attention& job, int64_t piece) { run_way<FloatWay>(job, segment_of(job, piece), piece); }

constexpr AttentionKernels kAttention{kName, run, merge};

}  // namespace
}  // namespace minimemo
