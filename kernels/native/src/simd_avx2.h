// AVX2 with FMA and F16C: a vector is 8 rows.
#pragma once

#include "format.h"

namespace minimemo {
namespace {

constexpr const char* kName = "avx2";
constexpr int kLanes = 8;
typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));
constexpr bool meets_bytes(int bits) { return bits < 8; }
constexpr bool kRegisterRows = false;        // whether there are registers for sums of a few rows beside a block
constexpr int kStrip = 4, kTileVectors = 2;  // attention: 8 sums, 2 cells and one broadcast in 16 registers

INLINE Bytes load_bytes(const uint8_t* p) { return Bytes(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
INLINE void store(uint8_t* p, Bytes v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), __m256i(v)); }
INLINE Bytes mask(char v) { return Bytes(_mm256_set1_epi8(v)); }
template <int kBy>
INLINE Bytes shift_right(Bytes v) {  // a neighbour's bits come in from above; callers mask them away
  return Bytes(_mm256_srli_epi16(__m256i(v), kBy));
}
INLINE Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
INLINE Floats splat(float v) { return _mm256_set1_ps(v); }
INLINE Ints splat(int32_t v) { return Ints(_mm256_set1_epi32(v)); }
INLINE Floats fused_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return fused_add(a, b, c); }
INLINE Floats maximum(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where either is NaN

INLINE Floats widened(const uint16_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
INLINE void widen_halves(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 8) _mm256_storeu_ps(to + i, widened(from + i));
}

INLINE __m256i four(const void* p) {  // four activations to every row
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}

// Even and odd columns apart, as block_avx2.h takes codes apart.
inline void store_words(const int32_t q[32], int16_t* to) {
  for (int j = 0; j < 8; j++) {
    to[4 * j] = int16_t(q[4 * j]);
    to[4 * j + 1] = int16_t(q[4 * j + 2]);
    to[4 * j + 2] = int16_t(q[4 * j + 1]);
    to[4 * j + 3] = int16_t(q[4 * j + 3]);
  }
}

// 8 rows of 32 bytes, one after the other, from vectors that hold 4 columns of each: a transpose of 8 x 8 words.
INLINE void store_rows(const Bytes u[8], uint8_t* rows) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; i++) {
    a[2 * i] = _mm256_unpacklo_epi32(__m256i(u[2 * i]), __m256i(u[2 * i + 1]));
    a[2 * i + 1] = _mm256_unpackhi_epi32(__m256i(u[2 * i]), __m256i(u[2 * i + 1]));
  }
  for (int half = 0; half < 2; half++)  // b[4 half + r]: columns 16 half .. of rows r and 4 + r
    for (int i = 0; i < 2; i++) {
      b[4 * half + 2 * i] = _mm256_unpacklo_epi64(a[4 * half + i], a[4 * half + 2 + i]);
      b[4 * half + 2 * i + 1] = _mm256_unpackhi_epi64(a[4 * half + i], a[4 * half + 2 + i]);
    }
  for (int r = 0; r < 4; r++) {
    __m256i* to = reinterpret_cast<__m256i*>(rows + 32 * r);
    _mm256_store_si256(to, _mm256_permute2x128_si256(b[r], b[4 + r], 0x20));
    _mm256_store_si256(to + 4, _mm256_permute2x128_si256(b[r], b[4 + r], 0x31));
  }
}

}  // namespace
}  // namespace minimemo
