// Packed keys and values on VNNI: vpdpbusd meets codes as they are, four to a lane. A query times the key scales of a
// group, and weights times the value scales of a block, become integers of 14 bits, relative to the row's largest, in
// two planes of 7; lows are added as one number a row. Codes of 4 bits are spread to bytes first.
#pragma once

#include "attention_kernels.h"

namespace minimemo {
namespace {

struct CodeMath {
  typedef __m512i Sum;
  typedef __m512i Cell;
  static INLINE Cell load(const uint32_t* b) { return _mm512_load_si512(b); }
  static INLINE Cell broadcast(const uint32_t* a) { return _mm512_set1_epi32(int(*a)); }
  // As assembly: GCC 12 moves every sum of the intrinsic through memory, half as quick.
  static INLINE Sum step(Sum sum, Cell a, Cell b) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
    return sum;
  }
  static INLINE Sum next_plane(Sum sum) { return _mm512_slli_epi32(sum, 7); }
  static INLINE Floats finish(Sum sum, const RowTerms& terms, int row) {
    return multiply_add(_mm512_cvtepi32_ps(sum), splat(terms.step[row]), splat(terms.add[row]));
  }
  static INLINE Floats finish_on(Floats c, Sum sum, const RowTerms& terms, int row) {
    return multiply_add(c, splat(terms.keep[row]), finish(sum, terms, row));
  }
};

constexpr float kMostSteps = 8127;  // 63.5 * 128, less one: the upper plane fits a byte, sums of 256 products 31 bits

// `count` vectors of 16 floats -> two planes of bytes at `to` and `plane` bytes on. Returns what one step stands for.
INLINE float quantize_row(const Floats* x, int count, uint32_t* to, int64_t plane) {
  Floats most = splat(0.0f);
  for (int i = 0; i < count; i++) most = maximum(most, Floats(_mm512_abs_ps(x[i])));
  const float largest = largest_of(most);
  const Floats factor = splat(largest > 0 ? kMostSteps / largest : 0.0f);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(to);
  for (int i = 0; i < count; i++) {
    const __m512i v = _mm512_cvtps_epi32(x[i] * factor);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(64)), 7);
    const __m512i low = _mm512_sub_epi32(v, _mm512_slli_epi32(high, 7));
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes + i * 16), _mm512_cvtepi32_epi8(high));
    _mm_store_si128(reinterpret_cast<__m128i*>(bytes + plane + i * 16), _mm512_cvtepi32_epi8(low));
  }
  return largest / kMostSteps;
}

// Head dims that are multiples of 16. Keys: (dim / 4, 64) quads of dims; values: (16, dim) quads of tokens.
struct PackedWay {
  typedef CodeMath Math;
  static constexpr int kWeightCells = 2 * kKeys / 4;
  int dim, padded, planes;
  uint32_t *keys, *values, *queries;  // queries: (rows, dim) floats
  alignas(64) float key_scale[kMaxDim], key_low[kMaxDim], value_scale[kKeys], value_low[kKeys];
  alignas(64) uint32_t rounded[kStrip * kMaxDim / 2];  // (count, 2, dim / 4)
  float step[16], add[16];
  const uint8_t *next_keys, *next_values;
  int64_t next_step;

  void begin(int64_t) {}
  void take_query(const float* q, int64_t row) { __builtin_memcpy(queries + row * dim, q, size_t(dim) * 4); }

  void take_block(const Segment& s, int head, int64_t key, int) {
    const int64_t at = head * s.key_param_stride + key / kKeys * dim;
    widen_halves(s.key_scale + at, dim, key_scale);
    widen_halves(s.key_low + at, dim, key_low);
    widen_halves(s.value_scale + head * s.value_param_stride + key, kKeys, value_scale);
    widen_halves(s.value_low + head * s.value_param_stride + key, kKeys, value_low);
    const int width = code_bytes(s, dim);
    const uint8_t* key_codes = static_cast<const uint8_t*>(s.keys) + head * s.key_stride + key * width;
    const uint8_t* value_codes = static_cast<const uint8_t*>(s.values) + head * s.value_stride + key * width;
    next_keys = key_codes + kKeys * width;
    next_values = value_codes + kKeys * width;
    next_step = s.store == kStorePacked4 ? 32 : 64;  // dim rows of B are multiplied while 64 tokens are to be fetched
    alignas(64) uint8_t spread[kKeys * kMaxDim];
    if (s.store == kStorePacked4) key_codes = spread_codes(key_codes, spread);
    transpose_tokens(key_codes, dim, dim / 4, kKeys, keys);
    if (s.store == kStorePacked4) value_codes = spread_codes(value_codes, spread);
    for (int t = 0; t < kKeys; t += 4) take_values(value_codes + t * dim, values + t / 4 * padded);
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

  void score(int64_t row, int count, float* scores, bool more) {
    const int cells = dim / 4;
    for (int r = 0; r < count; r++) {
      const float* q = reinterpret_cast<const float*>(queries) + (row + r) * dim;
      Floats scaled[kMaxDim / 16], lows = splat(0.0f);
      for (int d = 0; d < dim; d += 16) {
        const Floats x = load_floats(q + d);
        scaled[d / 16] = x * load_floats(key_scale + d);
        lows = multiply_add(x, load_floats(key_low + d), lows);
      }
      step[r] = quantize_row(scaled, dim / 16, rounded + r * 2 * cells, dim);
      add[r] = sum_of(lows);
    }
    product<Math, false>(count, rounded, 2 * cells, keys, kKeys, cells, 2, scores, kKeys, kKeys, {nullptr, step, add},
                         ahead(next_keys, more));
  }

  // Weights wait as floats where scores were, until all 64 are known.
  static INLINE void take_weights(uint32_t*, float* line, int vector, Floats weights) {
    store(line + vector * 16, weights);
  }
  INLINE void finish_weights(int r, uint32_t* to, const float* line) {
    Floats scaled[kKeys / 16], lows = splat(0.0f);
    for (int v = 0; v < kKeys / 16; v++) {
      const Floats w = load_floats(line + v * 16);
      scaled[v] = w * load_floats(value_scale + v * 16);
      lows = multiply_add(w, load_floats(value_low + v * 16), lows);
    }
    step[r] = quantize_row(scaled, kKeys / 16, to, kKeys);
    add[r] = sum_of(lows);
  }

  void add_values(int count, const uint32_t* weights, float* sums, const float* keep, bool more) {
    product<Math, true>(count, weights, kWeightCells, values, padded, kKeys / 4, 2, sums, padded, padded,
                        {keep, step, add}, ahead(next_values, more));
  }
};

}  // namespace
}  // namespace minimemo
