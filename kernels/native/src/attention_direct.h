// Products of few folded rows (a decode step of one token) on AVX-512: keys and values are laid out in registers and
// multiplied there: storing and loading them again, as many rows need it, was a sixth of the time.
#pragma once

#include "attention_gemm.h"

namespace minimemo {
namespace {

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
