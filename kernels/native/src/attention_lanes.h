// For variants that have no quicker way: sums and maxima over the lanes of a vector, and no way to transpose.
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
