// No instruction set assumed: vector types of GCC and Clang, which lower them to what the target has (NEON, SSE2).
#pragma once

#include "format.h"

namespace minimemo {
namespace {

constexpr const char* kName = "portable";
constexpr int kLanes = 16;
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
typedef int16_t Quantized;
constexpr bool meets_bytes(int) { return false; }
constexpr bool kRegisterRows = false;        // whether there are registers for sums of a few rows beside a block
constexpr int kStrip = 4, kTileVectors = 1;  // of attention

template <typename Vector>
INLINE Vector load(const void* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
INLINE Bytes load_bytes(const uint8_t* p) { return load<Bytes>(p); }
INLINE Floats load_floats(const float* p) { return load<Floats>(p); }
INLINE void store(uint8_t* p, Bytes v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }
INLINE Bytes mask(char v) { return Bytes{} + uint8_t(v); }
INLINE Floats splat(float v) { return Floats{} + v; }
INLINE Ints splat(int32_t v) { return Ints{} + v; }
template <int kBy>
INLINE Bytes shift_right(Bytes v) {
  return v >> kBy;
}
INLINE Floats fused_add(Floats a, Floats b, Floats c) {
  for (int i = 0; i < kLanes; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }  // fused would be a call on plain x86-64
INLINE Floats maximum(Floats a, Floats b) {                                     // b where either is NaN
  for (int i = 0; i < kLanes; i++) b[i] = a[i] > b[i] ? a[i] : b[i];
  return b;
}

inline void widen_halves(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i++) {
    uint16_t half;
    __builtin_memcpy(&half, from + i, 2);  // stored matrices need not be aligned, and hold no infinities
    to[i] = from_half(half);
  }
}

INLINE const int16_t* quantized(const Activations& x) { return x.words; }

// kCount vectors (4 columns each) times the activations at q; one 32-bit lane holds four codes, the first lowest.
template <int kCount, bool kFine>
INLINE Ints dot_bytes(const Bytes* u, const int16_t* q) {
  Ints sum{};
#pragma GCC unroll 1
  for (int j = 0; j < kCount; j++) {
    typedef uint32_t Lanes __attribute__((vector_size(64)));
    const Lanes v = Lanes(u[j]);
    sum += Ints(v & 255) * int32_t(q[4 * j]) + Ints(v >> 8 & 255) * int32_t(q[4 * j + 1]) +
           Ints(v >> 16 & 255) * int32_t(q[4 * j + 2]) + Ints(v >> 24) * int32_t(q[4 * j + 3]);
  }
  return sum;
}

inline void store_words(const int32_t q[32], int16_t* to) {
  for (int i = 0; i < kBlock; i++) to[i] = int16_t(q[i]);
}

// 16 rows of 32 bytes, one after the other, from vectors that hold 4 columns of each.
INLINE void store_rows(const Bytes u[8], uint8_t* rows) {
  for (int j = 0; j < 8; j++) {
    uint8_t words[64];
    store(words, u[j]);
    for (int r = 0; r < kLanes; r++) __builtin_memcpy(rows + r * kBlock + 4 * j, words + 4 * r, 4);
  }
}

}  // namespace
}  // namespace minimemo
