// What both AVX-512 variants of attention share: transposes, and products of few rows.
#pragma once

#include "simd_avx512.h"
//
#include "attention_gemm.h"

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

struct IntegerCells {
  typedef __m512i Cell;
  static INLINE Cell load(const uint32_t* b) { return _mm512_load_si512(b); }
  static INLINE Cell broadcast(const uint32_t* a) { return _mm512_set1_epi32(int(*a)); }
};

// Products of few folded rows (a decode step of one token): keys and values are laid out in registers and multiplied
// there. Storing and loading them again, as many rows need it, was a sixth of the time.
constexpr int kDirectRows = 7;

// Scores of kRows rows: tokens of `cells` cells, `row` bytes apart, times a (kRows, kPlanes, cells), planes added up.
template <class Math, int kRows, int kPlanes>
INLINE void direct_scores(const uint8_t* from, int64_t row, int cells, int valid, const uint32_t* a, float* scores,
                          const RowTerms& terms, Ahead ahead) {
  const int64_t a_row = int64_t(kPlanes) * cells;
  for (int t = 0; t < kKeys; t += 16) {
    typename Math::Sum sums[kPlanes][kRows] = {};
    for (int c = 0; c < cells; c += 16) {
      __m512i r[16];
      load_tokens(from + t * row, row, c, cells, valid - t, r);
      transpose(r);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        ahead.fetch();
#pragma GCC unroll 16
        for (int m = 0; m < kRows; m++)
#pragma GCC unroll 2
          for (int plane = 0; plane < kPlanes; plane++)
            sums[plane][m] = Math::step(sums[plane][m], Math::broadcast(a + m * a_row + plane * cells + c + i), r[i]);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++) {
      const typename Math::Sum sum = kPlanes == 2 ? Math::join(sums[0][m], sums[kPlanes - 1][m]) : sums[0][m];
      store(scores + m * kKeys + t, Math::finish(sum, terms, m));
    }
  }
}

// sums (kRows, dim) = sums * keep + weights (kRows, depth) times the cells that `lay(step, d, cells)` lays out: 64
// columns of step `step` from d on.
template <class Math, int kRows, typename Lay>
INLINE void direct_values(const Lay& lay, int depth, int dim, const uint32_t* weights, int64_t weights_row, float* sums,
                          const RowTerms& terms, Ahead ahead) {
  for (int d = 0; d < dim; d += 64) {
    typename Math::Sum part[kRows][4] = {};
    for (int k = 0; k < depth; k++) {
      ahead.fetch();
      ahead.fetch();
      __m512i cells[4];
      lay(k, d, cells);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; m++) {
        const typename Math::Cell one = Math::broadcast(weights + m * weights_row + k);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) part[m][v] = Math::step(part[m][v], one, cells[v]);
      }
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; m++)
#pragma GCC unroll 4
      for (int v = 0; v < 4; v++) {
        float* to = sums + m * dim + d + v * 16;
        store(to, Math::finish_on(load_floats(to), part[m][v], terms, m));
      }
  }
}

// body(number of rows known when compiled): the least of 1, 2, 4, 7 that holds `count`. Rows past it are computed from
// what is there; what comes out must have room.
template <int kRows>
struct Count {
  static constexpr int value = kRows;
};
template <typename Body>
INLINE void with_rows(int count, const Body& body) {
  if (count > 4)
    body(Count<7>());
  else if (count > 2)
    body(Count<4>());
  else if (count > 1)
    body(Count<2>());
  else
    body(Count<1>());
}

}  // namespace
}  // namespace minimemo
