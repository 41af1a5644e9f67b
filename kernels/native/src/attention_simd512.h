// What both AVX-512 variants of attention share, on top of simd_avx512.h.
#pragma once

#include "attention.h"
#include "simd_avx512.h"

namespace minimemo {
namespace {

// Four vectors -> one, whose quarters l hold the four's quarters l joined: number i of a quarter is vector i's.
template <typename Join>
INLINE __m512 join_four(const Floats* v, Join join) {
  const __m512d ab = _mm512_castps_pd(join(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1])));
  const __m512d cd = _mm512_castps_pd(join(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3])));
  return join(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}

// Lane r of the result: all lanes of v[r] joined, for `count` vectors; other lanes hold nothing of use. Reads 8 or 16.
// A transpose that joins as it goes: 10 joins for 8 vectors, where one after the other takes 32.
template <typename Join>
INLINE Floats join_lanes(const Floats* v, int count, Join join) {
  const auto quarters = [&](__m512 a, __m512 b) INLINE_LAMBDA {
    return join(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  const __m512 even = quarters(join_four(v, join), join_four(v + 4, join));
  if (count <= 8) return quarters(even, even);
  return quarters(even, quarters(join_four(v + 8, join), join_four(v + 12, join)));
}

// 16 vectors of 16 cells, row by row -> column by column.
INLINE void transpose(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // r[i + j], 128 bits l: column 4l + j of rows i .. i + 3
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    t[j] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
    t[j + 4] = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
    t[j + 8] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
    t[j + 12] = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
    r[j + 4] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0x88);
    r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    r[j + 12] = _mm512_shuffle_i32x4(t[j + 4], t[j + 12], 0xdd);
  }
}

// 16 tokens of `cells` cells each, `row` bytes apart -> their cells c .. c + 15, zeros past `cells` and `valid` tokens.
INLINE void load_tokens(const uint8_t* from, int64_t row, int c, int cells, int valid, __m512i r[16]) {
  const __mmask16 mask = cells - c < 16 ? __mmask16((1u << (cells - c)) - 1) : __mmask16(0xffff);
  const uint8_t* at = from + c * 4;
  if (valid >= 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_epi32(mask, at + i * row);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
      r[i] = i < valid ? _mm512_maskz_loadu_epi32(mask, at + i * row) : _mm512_setzero_si512();
  }
}

// 64 tokens -> to[cell * 64 + token]. Writes cells up to the next multiple of 16.
INLINE bool transpose_tokens(const uint8_t* from, int64_t row, int cells, int valid, uint32_t* to) {
  for (int t = 0; t < kKeys; t += 16)
    for (int c = 0; c < cells; c += 16) {
      __m512i r[16];
      load_tokens(from + t * row, row, c, cells, valid - t, r);
      transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) _mm512_store_si512(to + (c + i) * kKeys + t, r[i]);
    }
  return true;
}

}  // namespace
}  // namespace minimemo
