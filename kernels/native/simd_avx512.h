// AVX-512 with VNNI: a vector is 16 rows, and vpdpbusd adds four byte products to each 32-bit lane without saturating,
// so codes of every width meet bytes.
#pragma once

#include <immintrin.h>

#include "format.h"

namespace minimemo {
namespace {

#if defined(MINIMEMO_BFLOAT16)
constexpr const char* kName = "avx512bf16";
#else
constexpr const char* kName = "avx512";
#endif
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

// 16 rows of 32 bytes, one after the other, from vectors that hold 4 columns of each: a transpose of 16 x 8 words.
INLINE void store_rows(const Bytes u[8], uint8_t* rows) {
  __m512i a[8], b[8];
  for (int i = 0; i < 4; i++) {
    a[2 * i] = _mm512_unpacklo_epi32(__m512i(u[2 * i]), __m512i(u[2 * i + 1]));
    a[2 * i + 1] = _mm512_unpackhi_epi32(__m512i(u[2 * i]), __m512i(u[2 * i + 1]));
  }
  for (int half = 0; half < 2; half++)  // b[4 half + r]: columns 16 half .. of rows r, 4 + r, 8 + r, 12 + r
    for (int i = 0; i < 2; i++) {
      b[4 * half + 2 * i] = _mm512_unpacklo_epi64(a[4 * half + i], a[4 * half + 2 + i]);
      b[4 * half + 2 * i + 1] = _mm512_unpackhi_epi64(a[4 * half + i], a[4 * half + 2 + i]);
    }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int r = 0; r < 4; r++) {
    const __m512i first = _mm512_permutex2var_epi64(b[r], low, b[4 + r]);    // rows r and 4 + r
    const __m512i second = _mm512_permutex2var_epi64(b[r], high, b[4 + r]);  // rows 8 + r and 12 + r
    _mm256_store_si256(reinterpret_cast<__m256i*>(rows + 32 * r), _mm512_castsi512_si256(first));
    _mm256_store_si256(reinterpret_cast<__m256i*>(rows + 32 * (4 + r)), _mm512_extracti64x4_epi64(first, 1));
    _mm256_store_si256(reinterpret_cast<__m256i*>(rows + 32 * (8 + r)), _mm512_castsi512_si256(second));
    _mm256_store_si256(reinterpret_cast<__m256i*>(rows + 32 * (12 + r)), _mm512_extracti64x4_epi64(second, 1));
  }
}

INLINE Floats widen_bfloat16(const uint16_t* from) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return Floats(_mm512_slli_epi32(wide, 16));
}

INLINE void transpose(Floats v[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // b[4 q + c]: columns c, 4 + c, 8 + c, 12 + c of rows 4 q .. 4 q + 3
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) {
    const __m512 even_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), odd_low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    v[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    v[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    v[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    v[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

constexpr int kColumnVectors = 2, kRowTile = 14;  // 28 of 32 registers hold sums
#if defined(MINIMEMO_BFLOAT16)
// Attention (attention_kernels.h): two bfloat16 a lane, multiplied and added in pairs.
constexpr bool kPairs = true;
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
  return _mm512_dpbf16_ps(c, __m512bh(__m512i(a)), __m512bh(__m512i(b)));
}
INLINE Floats to_lanes(const uint16_t* p) { return Floats(_mm512_loadu_si512(p)); }
INLINE Floats weave_rows(const uint16_t* first, const uint16_t* second) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(second)));
  return Floats(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
INLINE void store_lanes(const Floats part[2], float* to) {
  _mm512_storeu_si512(to, __m512i(_mm512_cvtne2ps_pbh(part[1], part[0])));
}
#else
// Attention (attention_kernels.h): one float a lane.
constexpr bool kPairs = false;
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return fused_add(a, b, c); }
INLINE Floats to_lanes(const float* p) { return load_floats(p); }
INLINE Floats to_lanes(const uint16_t* p) { return widen_bfloat16(p); }
INLINE void store_lanes(const Floats part[1], float* to) { store(to, part[0]); }
#endif

}  // namespace
}  // namespace minimemo
