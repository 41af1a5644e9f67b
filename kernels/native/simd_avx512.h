// AVX-512 with VNNI: a vector is 16 rows, and vpdpbusd adds four byte products to each 32-bit lane without saturating,
// so codes of every width meet bytes.
#pragma once

#include <immintrin.h>

#include "format.h"

namespace minimemo {
namespace {

constexpr const char* kName = "avx512";
constexpr int kLanes = 16;
typedef uint8_t Bytes __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
typedef int8_t Quantized;
constexpr bool meets_bytes(int) { return true; }

INLINE Bytes load_bytes(const uint8_t* p) { return Bytes(_mm512_loadu_si512(p)); }
INLINE void store(uint8_t* p, Bytes v) { _mm512_storeu_si512(p, __m512i(v)); }
INLINE Bytes mask(char v) { return Bytes(_mm512_set1_epi8(v)); }
template <int kBy>
INLINE Bytes shift_right(Bytes v) {  // a neighbour's bits come in from above; callers mask them away
  return Bytes(_mm512_srli_epi16(__m512i(v), kBy));
}
INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
INLINE Floats splat(float v) { return _mm512_set1_ps(v); }
INLINE Ints splat(int32_t v) { return Ints(_mm512_set1_epi32(v)); }
INLINE Floats fused_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

INLINE void widen_halves(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 16)
    _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
}

INLINE const int8_t* quantized(const Activations& x) { return x.bytes; }

INLINE __m512i four(const void* p) {  // four activations to every row
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// kCount vectors (4 columns each) times the activations at q, and for fine ones 128 times that plus those at q + 32.
template <int kCount, bool kFine>
INLINE Ints dot_bytes(const Bytes* u, const int8_t* q) {
  __m512i high = _mm512_setzero_si512(), low = high;
  for (int j = 0; j < kCount; j++) {
    high = _mm512_dpbusd_epi32(high, __m512i(u[j]), four(q + 4 * j));
    if (kFine) low = _mm512_dpbusd_epi32(low, __m512i(u[j]), four(q + kBlock + 4 * j));
  }
  return Ints(kFine ? _mm512_add_epi32(_mm512_slli_epi32(high, 7), low) : high);
}

inline void store_words(const int32_t*, int16_t*) {}  // codes meet bytes only

}  // namespace
}  // namespace minimemo
