// Packed keys and values on VNNI: vpdpbusd meets codes as they are, four to a lane. A query times the key scales of a
// group, and weights times the value scales of a block, become integers of 14 bits, relative to the row's largest, in
// two planes of 7; lows are added as one number a row. Codes of 4 bits are spread to bytes first. One plane of 8 bits for
// the queries was 13 % quicker, with ten times the error.
#pragma once

#include "attention_kernels.h"

namespace minimemo {
namespace {

struct CodeMath : IntegerCells {
  typedef __m512i Sum;
  static INLINE Sum step(Sum sum, Cell a, Cell b) {
    add_products(sum, b, a);
    return sum;
  }
  static INLINE Sum step_from(Sum sum, const uint32_t* a, Cell b) {  // leaves the register of a broadcast free
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
    return sum;
  }
  static INLINE Sum next_plane(Sum sum) { return _mm512_slli_epi32(sum, 7); }
  static INLINE Sum join(Sum high, Sum low) { return _mm512_add_epi32(next_plane(high), low); }
  static INLINE Floats finish(Sum sum, const RowTerms& terms, int row) {
    return multiply_add(_mm512_cvtepi32_ps(sum), splat(terms.step[row]), splat(terms.add[row]));
  }
  static INLINE Floats finish_on(Floats c, Sum sum, const RowTerms& terms, int row) {
    return multiply_add(c, splat(terms.keep[row]), finish(sum, terms, row));
  }
};

constexpr float kMostSteps = 8127;  // 63.5 * 128, less one: the upper plane fits a byte, sums of 256 products 31 bits

// Of up to 16 rows, read 16 at a time: largest and sum of what each lane saw, and what follows from them.
struct RowSums {
  Floats largest[16], sum[16];
  alignas(64) float factor[16];  // what a row's numbers are multiplied with to become integers

  INLINE void begin(int r) { largest[r] = sum[r] = splat(0.0f); }
  INLINE void finish(int count, float* step, float* add) {
    for (int r = count; r % 8; r++) begin(r);
    const Floats most = join_lanes(largest, count, [](Floats a, Floats b) INLINE_LAMBDA { return maximum(a, b); });
    const __mmask16 any = _mm512_cmp_ps_mask(most, splat(0.0f), _CMP_GT_OQ);
    store(factor, Floats(_mm512_maskz_div_ps(any, splat(kMostSteps), most)));
    store(step, most * splat(1 / kMostSteps));
    store(add, join_lanes(sum, count, [](Floats a, Floats b) INLINE_LAMBDA { return a + b; }));
  }
};

struct QuarterOrder {  // number 4 i + l of a vector from number i of its quarter l
  alignas(64) uint32_t from[16] = {};
  constexpr QuarterOrder() {
    for (uint32_t i = 0; i < 16; i++) from[i] = i % 4 * 4 + i / 4;
  }
};
constexpr QuarterOrder kQuarterOrder;

// x * scale * factor, `count` of them, a multiple of 16 -> two planes of bytes at `to` and `plane` bytes on.
INLINE void round_to(uint8_t* to, int64_t plane, const float* x, const float* scale, float factor, int count) {
  const auto integers = [&](int at) INLINE_LAMBDA {
    return _mm512_cvtps_epi32(load_floats(x + at) * load_floats(scale + at) * splat(factor));
  };
  int at = 0;
  for (; at + 64 <= count; at += 64) {
    const __m512i order = _mm512_load_si512(kQuarterOrder.from), half = _mm512_set1_epi16(64);
    const __m512i a = _mm512_packs_epi32(integers(at), integers(at + 16));  // quarter by quarter
    const __m512i b = _mm512_packs_epi32(integers(at + 32), integers(at + 48));
    const __m512i high_a = _mm512_srai_epi16(_mm512_add_epi16(a, half), 7);
    const __m512i high_b = _mm512_srai_epi16(_mm512_add_epi16(b, half), 7);
    const __m512i low_a = _mm512_sub_epi16(a, _mm512_slli_epi16(high_a, 7));
    const __m512i low_b = _mm512_sub_epi16(b, _mm512_slli_epi16(high_b, 7));
    _mm512_storeu_si512(to + at, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(high_a, high_b)));
    _mm512_storeu_si512(to + plane + at, _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low_a, low_b)));
  }
  for (; at < count; at += 16) {
    const __m512i v = integers(at), high = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(64)), 7);
    const __m512i low = _mm512_sub_epi32(v, _mm512_slli_epi32(high, 7));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + at), _mm512_cvtepi32_epi8(high));
    _mm_store_si128(reinterpret_cast<__m128i*>(to + plane + at), _mm512_cvtepi32_epi8(low));
  }
}

// sums (kRows, dim) = sums * keep + weights (kRows, two planes of 16 cells) times 64 tokens of `dim` codes. The dims of 64
// come out four by four: what the vectors' quarters hold, which PackedWay::arrange puts in order at the end.
template <int kRows>
INLINE void direct_code_values(const uint8_t* codes, int dim, const uint32_t* weights, int64_t weights_row, float* sums,
                               const RowTerms& terms, Ahead ahead) {
  for (int d = 0; d < dim; d += 64)
    for (int half = 0; half < 2; half++) {
      __m512i high[kRows][2] = {}, low[kRows][2] = {};
      for (int k = 0; k < kKeys / 4; k++) {
        ahead.fetch();
        ahead.fetch();
        __m512i r[4], cells[2];
        for (int i = 0; i < 4; i++) r[i] = _mm512_loadu_si512(codes + (4 * k + i) * dim + d);
        const __m512i a = half ? _mm512_unpackhi_epi8(r[0], r[1]) : _mm512_unpacklo_epi8(r[0], r[1]);
        const __m512i b = half ? _mm512_unpackhi_epi8(r[2], r[3]) : _mm512_unpacklo_epi8(r[2], r[3]);
        cells[0] = _mm512_unpacklo_epi16(a, b);  // 128 bits l: dims 16 l + 8 half and the three after it
        cells[1] = _mm512_unpackhi_epi16(a, b);  // the next four
#pragma GCC unroll 16
        for (int m = 0; m < kRows; m++) {
          const uint32_t* at = weights + m * weights_row + k;
#pragma GCC unroll 2
          for (int v = 0; v < 2; v++) {
            high[m][v] = CodeMath::step_from(high[m][v], at, cells[v]);
            low[m][v] = CodeMath::step_from(low[m][v], at + kKeys / 4, cells[v]);
          }
        }
      }
#pragma GCC unroll 16
      for (int m = 0; m < kRows; m++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
          float* to = sums + m * dim + d + (2 * half + v) * 16;
          store(to, CodeMath::finish_on(load_floats(to), CodeMath::join(high[m][v], low[m][v]), terms, m));
        }
    }
}

// Head dims that are multiples of 16. Keys: (dim / 4, 64) quads of dims; values: (16, dim) quads of tokens.
struct PackedWay {
  typedef CodeMath Math;
  static constexpr int kRows = kStrip, kTogether = 1;
  static constexpr int kWeightCells = 2 * kKeys / 4;
  int dim, padded, planes;
  uint32_t *keys, *values, *queries;  // queries: (rows, dim) floats
  bool direct;
  const uint8_t *key_codes, *value_codes;  // of the block, a byte each
  alignas(64) float key_scale[kMaxDim], key_low[kMaxDim], value_scale[kKeys], value_low[kKeys];
  alignas(64) uint32_t rounded[kStrip * kMaxDim / 2];  // (count, 2, dim / 4)
  float step[16], add[16];
  const uint8_t *next_keys, *next_values;
  int64_t next_step;

  void begin(int64_t rows) { direct = rows <= kDirectRows && dim % 64 == 0; }
  void take_query(const float* q, int64_t row) { __builtin_memcpy(queries + row * dim, q, size_t(dim) * 4); }

  void take_block(const Segment& s, int head, int64_t key, int) {
    const int64_t at = head * s.key_param_stride + key / kKeys * dim;
    widen_halves(s.key_scale + at, dim, key_scale);
    widen_halves(s.key_low + at, dim, key_low);
    widen_halves(s.value_scale + head * s.value_param_stride + key, kKeys, value_scale);
    widen_halves(s.value_low + head * s.value_param_stride + key, kKeys, value_low);
    for (int i = 0; i < dim; i += 32) {  // a cache line of the next block's
      __builtin_prefetch(s.key_scale + at + dim + i);
      __builtin_prefetch(s.key_low + at + dim + i);
    }
    for (int i = 0; i < kKeys; i += 32) {
      __builtin_prefetch(s.value_scale + head * s.value_param_stride + key + kKeys + i);
      __builtin_prefetch(s.value_low + head * s.value_param_stride + key + kKeys + i);
    }
    const int width = code_bytes(s, dim);
    key_codes = static_cast<const uint8_t*>(s.keys) + head * s.key_stride + key * width;
    value_codes = static_cast<const uint8_t*>(s.values) + head * s.value_stride + key * width;
    next_keys = key_codes + kKeys * width;
    next_values = value_codes + kKeys * width;
    next_step = s.store == kStorePacked4 ? 32 : 64;  // dim rows of B are multiplied while 64 tokens are to be fetched
    alignas(64) uint8_t spread[kKeys * kMaxDim];
    const bool four = s.store == kStorePacked4;
    if (direct) {
      if (!four) return;
      key_codes = spread_codes(key_codes, reinterpret_cast<uint8_t*>(keys));
      value_codes = spread_codes(value_codes, reinterpret_cast<uint8_t*>(values));
      return;
    }
    transpose_tokens(four ? spread_codes(key_codes, spread) : key_codes, dim, dim / 4, kKeys, keys);
    const uint8_t* codes = four ? spread_codes(value_codes, spread) : value_codes;
    for (int t = 0; t < kKeys; t += 4) take_values(codes + t * dim, values + t / 4 * padded);
  }

  // 64 tokens of 4-bit codes -> bytes.
  const uint8_t* spread_codes(const uint8_t* codes, uint8_t* to) const {
    const int half = dim / 2;
    const __m256i low = _mm256_set1_epi8(15);
    for (int t = 0; t < kKeys; t++, codes += half, to += dim)
      for (int d = 0; d < half; d += 32) {
        const __mmask32 mask = half - d < 32 ? (1u << (half - d)) - 1 : 0xffffffff;
        const __m256i both = _mm256_maskz_loadu_epi8(mask, codes + d);
        _mm256_mask_storeu_epi8(to + d, mask, _mm256_and_si256(both, low));
        _mm256_mask_storeu_epi8(to + half + d, mask, _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
      }
    return to - kKeys * dim;
  }

  // Four tokens -> dim cells of their four codes.
  void take_values(const uint8_t* codes, uint32_t* to) const {
    for (int d = 0; d < dim; d += 64) {
      const __mmask64 mask = dim - d < 64 ? (1ull << (dim - d)) - 1 : ~0ull;
      __m512i r[4], t[4];
      for (int i = 0; i < 4; i++) r[i] = _mm512_maskz_loadu_epi8(mask, codes + i * dim + d);
      t[0] = _mm512_unpacklo_epi8(r[0], r[1]);
      t[1] = _mm512_unpackhi_epi8(r[0], r[1]);
      t[2] = _mm512_unpacklo_epi8(r[2], r[3]);
      t[3] = _mm512_unpackhi_epi8(r[2], r[3]);
      r[0] = _mm512_unpacklo_epi16(t[0], t[2]);  // 128 bits l: dims 16l .. 16l + 3, in r[1] the next four, ...
      r[1] = _mm512_unpackhi_epi16(t[0], t[2]);
      r[2] = _mm512_unpacklo_epi16(t[1], t[3]);
      r[3] = _mm512_unpackhi_epi16(t[1], t[3]);
      t[0] = _mm512_shuffle_i32x4(r[0], r[1], 0x44);
      t[1] = _mm512_shuffle_i32x4(r[2], r[3], 0x44);
      t[2] = _mm512_shuffle_i32x4(r[0], r[1], 0xee);
      t[3] = _mm512_shuffle_i32x4(r[2], r[3], 0xee);
      r[0] = _mm512_shuffle_i32x4(t[0], t[1], 0x88);
      r[1] = _mm512_shuffle_i32x4(t[0], t[1], 0xdd);
      r[2] = _mm512_shuffle_i32x4(t[2], t[3], 0x88);
      r[3] = _mm512_shuffle_i32x4(t[2], t[3], 0xdd);
      for (int i = 0; i < 4 && d + i * 16 < dim; i++) _mm512_store_si512(to + d + i * 16, r[i]);
    }
  }

  Ahead ahead(const uint8_t* at, bool more) const {
    return {reinterpret_cast<const char*>(more ? at : reinterpret_cast<const uint8_t*>(queries)), more ? next_step : 0};
  }

  // Queries times the block's key scales, rounded.
  INLINE void round_queries(int64_t row, int count) {
    const float* first = reinterpret_cast<const float*>(queries) + row * dim;
    RowSums sums;
    for (int r = 0; r < count; r++) {
      sums.begin(r);
      for (int d = 0; d < dim; d += 16) {
        const Floats x = load_floats(first + r * dim + d);
        sums.largest[r] = maximum(sums.largest[r], Floats(_mm512_abs_ps(x * load_floats(key_scale + d))));
        sums.sum[r] = multiply_add(x, load_floats(key_low + d), sums.sum[r]);
      }
    }
    sums.finish(count, step, add);
    for (int r = 0; r < count; r++)
      round_to(reinterpret_cast<uint8_t*>(rounded) + r * 2 * dim, dim, first + r * dim, key_scale, sums.factor[r], dim);
  }

  void score(int64_t row, int count, float* scores, bool more) {
    const int cells = dim / 4;
    round_queries(row, count);
    const RowTerms terms{nullptr, step, add};
    if (!direct) {
      product<Math, false>(count, rounded, 2 * cells, keys, kKeys, cells, 2, scores, kKeys, kKeys, terms,
                           ahead(next_keys, more));
      return;
    }
    with_rows(count, [&](auto rows) INLINE_LAMBDA {
      direct_scores<Math, decltype(rows)::value, 2>(key_codes, dim, cells, kKeys, rounded, scores, terms,
                                                    ahead(next_keys, more));
    });
  }

  // Weights wait as floats where scores were, until all 64 are known.
  static INLINE Floats weight(Floats x) { return exp2_of(x); }
  static INLINE void take_weights(uint32_t*, float* line, int vector, Floats weights) {
    store(line + vector * 16, weights);
  }
  INLINE void finish_weights(int count, uint32_t* to, const float* lines) {
    RowSums sums;
    for (int r = 0; r < count; r++) {
      sums.begin(r);
      for (int v = 0; v < kKeys; v += 16) {
        const Floats w = load_floats(lines + r * kKeys + v);
        sums.largest[r] = maximum(sums.largest[r], w * load_floats(value_scale + v));
        sums.sum[r] = multiply_add(w, load_floats(value_low + v), sums.sum[r]);
      }
    }
    sums.finish(count, step, add);
    for (int r = 0; r < count; r++) {
      uint8_t* bytes = reinterpret_cast<uint8_t*>(to + r * kWeightCells);
      round_to(bytes, kKeys, lines + r * kKeys, value_scale, sums.factor[r], kKeys);
    }
  }

  void add_values(int count, const uint32_t* weights, float* sums, const float* keep, bool more) {
    const RowTerms terms{keep, step, add};
    if (!direct) {
      product<Math, true>(count, weights, kWeightCells, values, padded, kKeys / 4, 2, sums, padded, padded, terms,
                          ahead(next_values, more));
      return;
    }
    with_rows(count, [&](auto rows) INLINE_LAMBDA {
      direct_code_values<decltype(rows)::value>(value_codes, dim, weights, kWeightCells, sums, terms,
                                                ahead(next_values, more));
    });
  }

  // From the order of direct_code_values to that of dims: a transpose of 4 x 4 quarters.
  void arrange(float* sums, int) const {
    if (!direct) return;
    for (int d = 0; d < dim; d += 64) {
      alignas(64) float four[64];
      __builtin_memcpy(four, sums + d, sizeof four);
      for (int i = 0; i < 16; i++) __builtin_memcpy(sums + d + i * 4, four + (i % 4 * 4 + i / 4) * 4, 16);
    }
  }
};

}  // namespace
}  // namespace minimemo
