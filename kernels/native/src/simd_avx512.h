// AVX-512 with VNNI: a vector is 16 rows, and vpdpbusd adds four byte products to each 32-bit lane without saturating,
// so codes of every width meet bytes.
#pragma once

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
constexpr bool kRegisterRows = true;          // whether there are registers for sums of a few rows beside a block
constexpr int kStrip = 14, kTileVectors = 2;  // attention: 28 sums, 2 cells and one broadcast in 32 registers

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
INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return fused_add(a, b, c); }
INLINE Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where either is NaN
INLINE float largest_of(Floats v) { return _mm512_reduce_max_ps(v); }
INLINE float sum_of(Floats v) { return _mm512_reduce_add_ps(v); }

INLINE Floats widened(const uint16_t* from) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
INLINE void widen_halves(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += 16) _mm512_storeu_ps(to + i, widened(from + i));
}

INLINE const int8_t* quantized(const Activations& x) { return x.bytes; }

INLINE __m512i four(const void* p) {  // four activations to every row
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}

// sum += four products of codes and bytes a lane. Not the intrinsic: around it GCC 12 moves every sum through memory, half
// as quick.
INLINE void add_products(__m512i& sum, __m512i codes, __m512i bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(bytes));
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

}  // namespace
}  // namespace minimemo
