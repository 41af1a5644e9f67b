// Small products from the first-level cache: C (rows, columns) = A (rows, depth) times B (depth, columns), and how each
// kind of number is multiplied. A cell of A and B is 32 bits: a float, a pair of bfloat16, or four bytes.
#pragma once

#include "attention.h"

namespace minimemo {
namespace {

// What a finished sum becomes, a row at a time: C = C * keep + sum * step + add (each used where the math needs it).
struct RowTerms {
  const float* keep;
  const float* step;
  const float* add;
};

// What the next block of keys will be read from: fetched while this one is multiplied, `step` bytes (at most two cache
// lines) a row of B, so that memory is never idle, and into the second-level cache: the first is full (16k keys took
// 1.04 ms with it, 0.64 so).
struct Ahead {
  const char* at;
  int64_t step;
  INLINE void fetch() {
    __builtin_prefetch(at, 0, 2);
    __builtin_prefetch(at + step / 2, 0, 2);
    at += step;
  }
};

struct FloatSums {
  typedef Floats Sum;
  static INLINE Sum next_plane(Sum sum) { return sum; }
  static INLINE Sum join(Sum high, Sum low) { return high + low; }
  static INLINE Floats finish(Sum sum, const RowTerms&, int) { return sum; }
  static INLINE Floats finish_on(Floats c, Sum sum, const RowTerms& terms, int row) {
    return multiply_add(c, splat(terms.keep[row]), sum);
  }
};

struct FloatMath : FloatSums {
  typedef Floats Cell;
  static INLINE Cell load(const uint32_t* b) { return load_floats(reinterpret_cast<const float*>(b)); }
  static INLINE Cell broadcast(const uint32_t* a) {
    float v;
    __builtin_memcpy(&v, a, 4);
    return splat(v);
  }
  static INLINE Sum step(Sum sum, Cell a, Cell b) { return multiply_add(a, b, sum); }
};

// A's planes lie one after the other in a row, the most significant first; all meet the same B.
template <class Math, int kRows, int kVectors, bool kAdd>
INLINE void product_tile(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, int depth, int planes,
                         float* c, int64_t c_row, const RowTerms& terms, Ahead& ahead) {
  typename Math::Sum sums[kRows][kVectors] = {};
  for (int plane = 0; plane < planes; plane++, a += depth) {
    if (plane > 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++)
        for (int v = 0; v < kVectors; v++) sums[r][v] = Math::next_plane(sums[r][v]);
    }
    for (int k = 0; k < depth; k++) {
      typename Math::Cell cells[kVectors];
      ahead.fetch();
      for (int v = 0; v < kVectors; v++) cells[v] = Math::load(b + k * b_row + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const typename Math::Cell one = Math::broadcast(a + r * a_row + k);
        for (int v = 0; v < kVectors; v++) sums[r][v] = Math::step(sums[r][v], one, cells[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++) {
      float* to = c + r * c_row + v * kLanes;
      store(to, kAdd ? Math::finish_on(load_floats(to), sums[r][v], terms, r) : Math::finish(sums[r][v], terms, r));
    }
}

// Rows in tiles of kRows, and what is left in ever smaller ones.
template <class Math, int kRows, bool kAdd>
INLINE void product_rows(int rows, const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, int depth,
                         int planes, float* c, int64_t c_row, int columns, RowTerms terms, Ahead& ahead) {
  for (; rows >= kRows; rows -= kRows, a += kRows * a_row, c += kRows * c_row) {
    int column = 0;
    for (; column + kTileVectors * kLanes <= columns; column += kTileVectors * kLanes)
      product_tile<Math, kRows, kTileVectors, kAdd>(a, a_row, b + column, b_row, depth, planes, c + column, c_row,
                                                    terms, ahead);
    for (; column < columns; column += kLanes)
      product_tile<Math, kRows, 1, kAdd>(a, a_row, b + column, b_row, depth, planes, c + column, c_row, terms,
                                         ahead);
    if (terms.keep) terms.keep += kRows;
    if (terms.step) terms.step += kRows, terms.add += kRows;
  }
  if constexpr (kRows > 1) {
    constexpr int kFewer = kRows > 7 ? 7 : kRows > 4 ? 4 : kRows > 2 ? 2 : 1;
    if (rows > 0)
      product_rows<Math, kFewer, kAdd>(rows, a, a_row, b, b_row, depth, planes, c, c_row, columns, terms, ahead);
  }
}

template <class Math, bool kAdd>
void product(int rows, const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, int depth, int planes,
             float* c, int64_t c_row, int columns, const RowTerms& terms, Ahead ahead) {
  product_rows<Math, kStrip, kAdd>(rows, a, a_row, b, b_row, depth, planes, c, c_row, columns, terms, ahead);
}

// x, at least -127, less the nearest integer, which comes where a float has its exponent.
INLINE Floats fraction_of(Floats x, Ints& exponent) {
  x = maximum(splat(-127.0f), x);  // in this order NaN stays NaN
  const Floats shifted = x + splat(12582912.0f);  // 1.5 * 2^23: rounds to an integer, which its low bits then hold
  exponent = Ints(shifted) << 23;
  return x - (shifted - splat(12582912.0f));
}

// 2^x for x <= 0 (from about 2^-126 down: 0), relative error below 3e-7: powers of two by the exponent's bits, what is
// left, within [-0.5, 0.5], by the polynomial of degree 5 with the least largest relative error there.
INLINE Floats exp2_of(Floats x) {
  Ints exponent;
  const Floats f = fraction_of(x, exponent);
  Floats y = splat(1.32647273e-3f);
  y = multiply_add(y, f, splat(9.67151299e-3f));
  y = multiply_add(y, f, splat(5.55073358e-2f));
  y = multiply_add(y, f, splat(2.40222424e-1f));
  y = multiply_add(y, f, splat(6.93147004e-1f));
  y = multiply_add(y, f, splat(1.0f));
  return y * Floats(exponent + (127 << 23));
}

}  // namespace
}  // namespace minimemo
