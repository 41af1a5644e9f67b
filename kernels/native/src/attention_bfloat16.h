// bfloat16 keys and values: vdpbf16ps multiplies pairs and adds them up in float32.
#pragma once

#include "attention_kernels.h"

namespace minimemo {
namespace {

struct Bfloat16Math : FloatSums, IntegerCells {
  static INLINE Sum step(Sum sum, Cell a, Cell b) { return _mm512_dpbf16_ps(sum, __m512bh(a), __m512bh(b)); }
};

INLINE __m256i rounded(Floats v) { return __m256i(_mm512_cvtneps_pbh(v)); }

struct PairOrder {  // word i of one vector, word i of another, from i = 0 and from i = 16 on
  alignas(64) uint16_t words[2][32] = {};
  constexpr PairOrder() {
    for (int i = 0; i < 32; i++) {
      words[i / 16][i % 16 * 2] = uint16_t(i);
      words[i / 16][i % 16 * 2 + 1] = uint16_t(32 + i);
    }
  }
};
constexpr PairOrder kPairOrder;

// Head dims that are multiples of 16. Keys: (dim / 2, 64) pairs of dims; values: (32, dim) pairs of tokens.
struct Bfloat16Way {
  typedef Bfloat16Math Math;
  static constexpr int kRows = kStrip, kTogether = 1;
  static constexpr int kWeightCells = kKeys / 2;
  int dim, padded, planes;
  uint32_t *keys, *values, *queries;  // queries: (rows, planes, dim / 2)
  const uint16_t *key_tokens, *value_tokens;
  int valid;
  bool direct;

  void begin(int64_t rows) { direct = rows <= kDirectRows && dim % 64 == 0; }

  void take_query(const float* q, int64_t row) {
    uint32_t* to = queries + row * planes * (dim / 2);
    for (int d = 0; d < dim; d += 16, to += 8) {
      const Floats x = load_floats(q + d);
      const __m256i high = rounded(x);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), high);
      if (planes == 1) continue;
      const Floats rest = x - Floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + dim / 2), rounded(rest));
    }
  }

  void take_block(const Segment& s, int head, int64_t key, int count) {
    valid = count;
    key_tokens = static_cast<const uint16_t*>(s.keys) + head * s.key_stride + key * dim;
    value_tokens = static_cast<const uint16_t*>(s.values) + head * s.value_stride + key * dim;
    if (direct) return;
    transpose_tokens(reinterpret_cast<const uint8_t*>(key_tokens), int64_t(dim) * 2, dim / 2, valid, keys);
    for (int step = 0; step < kKeys / 2; step++)
      for (int d = 0; d < dim; d += 32) {
        __m512i cells[2];
        lay_values(step, d, cells);
        _mm512_store_si512(values + step * padded + d, cells[0]);
        if (d + 16 < dim) _mm512_store_si512(values + step * padded + d + 16, cells[1]);
      }
  }

  // Pairs of two tokens, 32 dims.
  INLINE void lay_values(int step, int d, __m512i cells[2]) const {
    const int t = 2 * step;
    const uint16_t* at = value_tokens + int64_t(t) * dim + d;
    const __mmask32 mask = dim - d < 32 ? 0xffff : 0xffffffff;
    const __m512i a = t < valid ? _mm512_maskz_loadu_epi16(mask, at) : _mm512_setzero_si512();
    const __m512i b = t + 1 < valid ? _mm512_maskz_loadu_epi16(mask, at + dim) : _mm512_setzero_si512();
    const __m512i first = _mm512_load_si512(kPairOrder.words[0]), second = _mm512_load_si512(kPairOrder.words[1]);
    cells[0] = _mm512_permutex2var_epi16(a, first, b);
    cells[1] = _mm512_permutex2var_epi16(a, second, b);
  }

  Ahead ahead(const uint16_t* at, int64_t step) const {  // nothing to fetch: what is there anyway
    return {step ? reinterpret_cast<const char*>(at) : reinterpret_cast<const char*>(queries), step};
  }
  void score(int64_t row, int count, float* scores, bool more) {
    const int cells = dim / 2;
    if (direct) {
      const uint8_t* from = reinterpret_cast<const uint8_t*>(key_tokens);
      const Ahead next = ahead(key_tokens + kKeys * dim, more ? 64 : 0);
      with_rows(count, [&](auto rows) INLINE_LAMBDA {
        constexpr int kRows = decltype(rows)::value;
        if (planes == 1)
          direct_scores<Math, kRows, 1>(from, int64_t(dim) * 2, cells, valid, queries, scores, {}, next);
        else
          direct_scores<Math, kRows, 2>(from, int64_t(dim) * 2, cells, valid, queries, scores, {}, next);
      });
      return;
    }
    product<Math, false>(count, queries + row * planes * cells, planes * cells, keys, kKeys, cells, planes, scores,
                         kKeys, kKeys, {}, ahead(key_tokens + kKeys * dim, more ? 128 / planes : 0));
  }
  static INLINE Floats weight(Floats x) { return exp2_of(x); }
  static INLINE void take_weights(uint32_t* to, float*, int vector, Floats weights) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + vector * 8), rounded(weights));
  }
  void finish_weights(int, uint32_t*, const float*) {}
  static void arrange(float*, int) {}
  void add_values(int count, const uint32_t* weights, float* sums, const float* keep, bool more) {
    if (direct) {
      const auto lay = [&](int step, int d, __m512i* cells) INLINE_LAMBDA {
        lay_values(step, d, cells);
        lay_values(step, d + 32, cells + 2);
      };
      with_rows(count, [&](auto rows) INLINE_LAMBDA {
        direct_values<Math, decltype(rows)::value>(lay, kWeightCells, dim, weights, kWeightCells, sums,
                                                   {keep, nullptr, nullptr},
                                                   ahead(value_tokens + kKeys * dim, more ? 128 : 0));
      });
      return;
    }
    product<Math, true>(count, weights, kWeightCells, values, padded, kWeightCells, 1, sums, padded, padded,
                        {keep, nullptr, nullptr}, ahead(value_tokens + kKeys * dim, more ? 128 : 0));
  }
};

}  // namespace
}  // namespace minimemo
