// exp of vectors, over the operations of a simd_*.h.
#pragma once

#include <cstring>

#include "format.h"

namespace minimemo {
namespace {

// Relative error below 3e-7; 0 below -87, no overflow up to 88. 2^n times a Taylor polynomial of the rest.
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

}  // namespace
}  // namespace minimemo
