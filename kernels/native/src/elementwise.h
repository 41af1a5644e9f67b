// What lies between products, for one row: over the operations of a simd_*.h.
#pragma once

#include "vector_math.h"

namespace minimemo {
namespace {

enum Gate : int { kSilu = 0, kGeluTanh = 1 };

// x (columns,) to unit root mean square, times weight (columns,) (arXiv 1910.07467).
void rms_norm(const float* x, const float* weight, float eps, int64_t columns, float* out) {
  constexpr int kSums = 4;
  Floats sums[kSums] = {};
  int64_t at = 0;
  for (; at + kSums * kLanes <= columns; at += kSums * kLanes)
    for (int i = 0; i < kSums; i++) {
      const Floats v = load_floats(x + at + i * kLanes);
      sums[i] = fused_add(v, v, sums[i]);
    }
  float lanes[kLanes], total = 0;
  store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (int i = 0; i < kLanes; i++) total += lanes[i];
  for (; at < columns; at++) total += x[at] * x[at];
  const float factor = 1.0f / __builtin_sqrtf(total / float(columns) + eps);
  for (int64_t i = 0; i < columns; i++) out[i] = x[i] * factor * weight[i];
}

// act(gate) * up (arXiv 2002.05202), `count` numbers.
void gate(const float* gate, const float* up, int kind, int64_t count, float* out) {
  for (int64_t at = 0; at < count; at += kLanes) {
    float rest[2][kLanes] = {};
    const int64_t used = count - at < kLanes ? count - at : kLanes;
    if (used < kLanes) {
      std::memcpy(rest[0], gate + at, size_t(used) * 4);
      std::memcpy(rest[1], up + at, size_t(used) * 4);
    }
    const Floats x = load_floats(used < kLanes ? rest[0] : gate + at);
    // GELU's tanh form is x times the logistic function of 2 sqrt(2 / pi) (x + 0.044715 x^3).
    Floats inner = x;
    if (kind == kGeluTanh) inner = splat(1.59576912f) * fused_add(splat(0.044715f) * x * x, x, x);
    const Floats active = x / (splat(1.0f) + exponential(Floats{} - inner));
    const Floats result = active * load_floats(used < kLanes ? rest[1] : up + at);
    if (used == kLanes) {
      store(out + at, result);
    } else {
      store(rest[0], result);
      std::memcpy(out + at, rest[0], size_t(used) * 4);
    }
  }
}

}  // namespace
}  // namespace minimemo
