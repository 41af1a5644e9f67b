// What every file here takes: words for the compiler, and numbers as bits, in bfloat16 and in half precision.
#pragma once

#include <cstdint>

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace minimemo {

constexpr int kFewRows = 16;  // of a step: in jobs of at most so many rows each gets the bits that it has alone

namespace {

INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}
INLINE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

INLINE float from_bfloat16(uint16_t half) { return float_of(uint32_t(half) << 16); }
INLINE uint16_t to_bfloat16(float value) {  // to nearest, ties to even; not-a-numbers stay so
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 64);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Of a finite number. The product mends the exponent, of subnormals too.
INLINE float from_half(uint16_t half) {
  return float_of(bits_of(float_of(uint32_t(half & 0x7fff) << 13) * 0x1p112f) | uint32_t(half & 0x8000) << 16);
}
INLINE uint16_t to_half(float value) {  // to nearest, ties to even; |value| <= 65504 + half a step rounds to a finite one
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude < 0x38800000)  // below 2^-14: adding 1/2 leaves the subnormal's digits as the last ones of the sum
    return uint16_t(sign | (bits_of(__builtin_fabsf(value) + 0.5f) - 0x3f000000));
  return uint16_t(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
}

}  // namespace
}  // namespace minimemo
