// Plain loops over floats, compiled for every variant: the compiler makes vectors of them. No product is fused with a sum
// (-ffp-contract=off), so every variant gives the same bits.
#pragma once

#include <cstring>

#include "base.h"

namespace minimemo {
namespace {

constexpr int64_t kMaxGroup = 64, kWide = 32;  // tokens of a group, numbers of a token at a time
constexpr int kAtOnce = 4;                     // rows of the matrix

INLINE void copy_wide(float* to, const float* from, int64_t wide) {
  if (wide == kWide)
    std::memcpy(to, from, kWide * sizeof(float));
  else
    std::memcpy(to, from, size_t(wide) * sizeof(float));
}

// Sums of kRows rows of the matrix, kWide numbers each, into x.
template <int kRows>
INLINE void multiply_rows(const float* matrix, int64_t group, const float (*taken)[kWide], float* x, int64_t columns,
                          int64_t wide) {
  float sums[kRows][kWide] = {};
  for (int64_t t = 0; t < group; t++)
    for (int k = 0; k < kRows; k++)
      for (int64_t i = 0; i < kWide; i++) sums[k][i] += matrix[k * group + t] * taken[t][i];
  for (int k = 0; k < kRows; k++) copy_wide(x + k * columns, sums[k], wide);
}

// x (group, columns) in place: row k becomes the sum over t of matrix[k][t] * x[t].
void multiply_group(const float* matrix, int64_t group, float* x, int64_t columns) {
  float taken[kMaxGroup][kWide];
  for (int64_t at = 0; at < columns; at += kWide) {
    const int64_t wide = columns - at < kWide ? columns - at : kWide;
    if (wide < kWide) std::memset(taken, 0, sizeof taken);
    for (int64_t t = 0; t < group; t++) copy_wide(taken[t], x + t * columns + at, wide);
    int64_t k = 0;
    for (; k + kAtOnce <= group; k += kAtOnce)
      multiply_rows<kAtOnce>(matrix + k * group, group, taken, x + k * columns + at, columns, wide);
    for (; k < group; k++) multiply_rows<1>(matrix + k * group, group, taken, x + k * columns + at, columns, wide);
  }
}

// out[i] = components[places[i]] in whole steps, away from zero from 1 - rounding on, at most 32,767 either way.
void round_symbols(const float* components, const int32_t* places, int64_t count, float step, float rounding,
                   int16_t* out) {
  constexpr float kLargest = 32767;
  for (int64_t i = 0; i < count; i++) {
    const float component = components[places[i]], size = __builtin_fabsf(component) / step + rounding;
    const int whole = int(size < kLargest ? size : kLargest);
    out[i] = int16_t(component < 0 ? -whole : whole);
  }
}

INLINE void put(float* to, float x) { *to = x; }
INLINE void put(uint16_t* to, float x) { *to = to_bfloat16(x); }

// Keys (tokens, dim) turned by cos and sin, dimension i with i + dim / 2 (arXiv 2104.09864), and values, to their places.
template <typename Out>
void store_turned(const float* keys, const float* values, const float* cosines, const float* sines, int64_t tokens,
                  int64_t dim, Out* to_keys, Out* to_values) {
  const int64_t half = dim / 2;
  for (int64_t t = 0; t < tokens; t++, keys += dim, cosines += dim, sines += dim, to_keys += dim) {
    for (int64_t i = 0; i < half; i++) put(to_keys + i, keys[i] * cosines[i] - keys[i + half] * sines[i]);
    for (int64_t i = half; i < dim; i++) put(to_keys + i, keys[i] * cosines[i] + keys[i - half] * sines[i]);
  }
  for (int64_t i = 0; i < tokens * dim; i++) put(to_values + i, values[i]);
}

}  // namespace
}  // namespace minimemo
