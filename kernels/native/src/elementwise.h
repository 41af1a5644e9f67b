// What lies between products, for one row: over the operations of a simd_*.h.
#pragma once

#include <cstring>

#include "format.h"

namespace minimemo {
namespace {

// exp(x), relative error below 3e-7; 0 below -87, no overflow up to 88. 2^n times a Taylor polynomial of the rest.
INLINE Floats exponential(Floats x) {
  const Floats rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const auto seen = x > splat(-87.0f);
  x = x < splat(-87.0f) ? splat(-87.0f) : x;
  x = x > splat(88.0f) ? splat(88.0f) : x;
  const Floats shifted = fused_add(x, splat(1.44269504f), rounder);
  const Floats n = shifted - rounder;
  Floats r = fused_add(n, splat(-0.693145752f), x);  // ln 2 in two parts, the first exact when multiplied
  r = fused_add(n, splat(-1.42860677e-6f), r);
  Floats p = splat(1.0f / 720);
  p = fused_add(p, r, splat(1.0f / 120));
  p = fused_add(p, r, splat(1.0f / 24));
  p = fused_add(p, r, splat(1.0f / 6));
  p = fused_add(p, r, splat(0.5f));
  p = fused_add(p, r, splat(1.0f));
  p = fused_add(p, r, splat(1.0f));
  const Ints exponent = Ints(shifted) << 23;  // the low bits of `shifted` are n
  return Floats(Ints(Floats(Ints(p) + exponent)) & Ints(seen));
}

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
