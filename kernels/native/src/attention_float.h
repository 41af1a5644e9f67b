// Keys and values of any store, widened to float32 and laid out for products: the way of every variant where it has
// nothing quicker.
#pragma once

#include "attention_gemm.h"

namespace minimemo {
namespace {

inline void widen_some(const uint16_t* halves, int count, float* to) {
  alignas(64) uint16_t padded[kMaxDim] = {};
  __builtin_memcpy(padded, halves, size_t(count) * 2);
  widen_halves(padded, (count + 15) / 16 * 16, to);
}

inline void widen_dense(const void* from, bool bfloat16, int64_t first, int dim, float* to) {
  if (!bfloat16) {
    __builtin_memcpy(to, static_cast<const float*>(from) + first, size_t(dim) * 4);
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(from) + first;
  for (int d = 0; d < dim; d++) to[d] = from_bfloat16(halves[d]);
}

inline void expand_codes(const uint8_t* codes, bool four_bits, int dim, uint8_t* to) {
  if (!four_bits) {
    __builtin_memcpy(to, codes, size_t(dim));
    return;
  }
  const int half = dim / 2;
  for (int i = 0; i < half; i++) to[i] = codes[i] & 15;
  for (int i = 0; i < half; i++) to[half + i] = uint8_t(codes[i] >> 4);
}

inline int code_bytes(const Segment& s, int dim) { return s.store == kStorePacked4 ? dim / 2 : dim; }

// Keys of a block, transposed: to[d * 64 + token], zeros past `valid` tokens.
inline void widen_keys(const Segment& s, int head, int64_t key, int valid, int dim, float* to) {
  alignas(64) float line[kMaxDim], scale[kMaxDim], low[kMaxDim];
  const bool packed = s.store >= kStorePacked8;
  if (packed) {
    const int64_t at = head * s.key_param_stride + key / kKeys * dim;
    widen_some(s.key_scale + at, dim, scale);
    widen_some(s.key_low + at, dim, low);
  }
  for (int t = 0; t < kKeys; t++) {
    if (t >= valid) {
      for (int d = 0; d < dim; d++) to[d * kKeys + t] = 0;
      continue;
    }
    if (packed) {
      uint8_t codes[kMaxDim];
      const int width = code_bytes(s, dim);
      expand_codes(static_cast<const uint8_t*>(s.keys) + head * s.key_stride + (key + t) * width,
                   s.store == kStorePacked4, dim, codes);
      for (int d = 0; d < dim; d++) line[d] = float(codes[d]) * scale[d] + low[d];
    } else {
      widen_dense(s.keys, s.store == kStoreBfloat16, head * s.key_stride + (key + t) * dim, dim, line);
    }
    for (int d = 0; d < dim; d++) to[d * kKeys + t] = line[d];
  }
}

// Values of a block: to[token * padded + d], zeros past `valid` tokens and past dim.
inline void widen_values(const Segment& s, int head, int64_t key, int valid, int dim, int padded, float* to) {
  alignas(64) float scale[kKeys], low[kKeys];
  const bool packed = s.store >= kStorePacked8;
  if (packed) {
    widen_some(s.value_scale + head * s.value_param_stride + key, kKeys, scale);
    widen_some(s.value_low + head * s.value_param_stride + key, kKeys, low);
  }
  for (int t = 0; t < kKeys; t++, to += padded) {
    if (t >= valid) {
      for (int d = 0; d < padded; d++) to[d] = 0;
      continue;
    }
    if (packed) {
      uint8_t codes[kMaxDim];
      const int width = code_bytes(s, dim);
      expand_codes(static_cast<const uint8_t*>(s.values) + head * s.value_stride + (key + t) * width,
                   s.store == kStorePacked4, dim, codes);
      for (int d = 0; d < dim; d++) to[d] = float(codes[d]) * scale[t] + low[t];
    } else {
      widen_dense(s.values, s.store == kStoreBfloat16, head * s.value_stride + (key + t) * dim, dim, to);
    }
    for (int d = dim; d < padded; d++) to[d] = 0;
  }
}

// How a piece of attention computes: everything in float32. The other ways have the same members.
struct FloatWay {
  typedef FloatMath Math;
  static constexpr int kRows = kStrip, kTogether = 1;  // of a strip; strips that are computed together
  static constexpr int kWeightCells = kKeys;  // of one row
  int dim, padded, planes;
  uint32_t* keys;     // (dim, 64), 64 KiB
  uint32_t* values;   // (64, padded), 64 KiB
  uint32_t* queries;  // (rows, dim), 64 KiB
  const char *next_keys, *next_values;
  int64_t next_step;

  void begin(int64_t) {}
  void take_query(const float* q, int64_t row) {
    __builtin_memcpy(queries + row * dim, q, size_t(dim) * 4);
  }
  void take_block(const Segment& s, int head, int64_t key, int valid) {
    const int64_t row = s.store == kStoreFloat ? dim * 4 : s.store == kStoreBfloat16 ? dim * 2 : code_bytes(s, dim);
    const int64_t unit = s.store >= kStorePacked8 ? 1 : row / dim;  // bytes that strides count
    const char* from = static_cast<const char*>(s.keys) + head * s.key_stride * unit + key * row;
    next_keys = from + kKeys * row;
    next_values = static_cast<const char*>(s.values) + head * s.value_stride * unit + (key + kKeys) * row;
    next_step = row * kTileVectors * kLanes / dim;
    if (s.store != kStoreFloat || !transpose_tokens(reinterpret_cast<const uint8_t*>(from), row, dim, valid, keys))
      widen_keys(s, head, key, valid, dim, reinterpret_cast<float*>(keys));
    widen_values(s, head, key, valid, dim, padded, reinterpret_cast<float*>(values));
  }
  Ahead ahead(const char* at, bool more) const {  // nothing to fetch: what is there anyway
    return {more ? at : reinterpret_cast<const char*>(queries), more ? next_step : 0};
  }
  void score(int64_t row, int count, float* scores, bool more) {
    product<Math, false>(count, queries + row * dim, dim, keys, kKeys, dim, 1, scores, kKeys, kKeys, {},
                         ahead(next_keys, more));
  }
  static INLINE Floats weight(Floats x) { return exp2_of(x); }
  static INLINE void take_weights(uint32_t* to, float*, int vector, Floats weights) {
    store(reinterpret_cast<float*>(to) + vector * kLanes, weights);
  }
  void finish_weights(int, uint32_t*, const float*) {}
  static void arrange(float*, int) {}
  void add_values(int count, const uint32_t* weights, float* sums, const float* keep, bool more) {
    product<Math, true>(count, weights, kWeightCells, values, padded, kKeys, 1, sums, padded, padded,
                        {keep, nullptr, nullptr}, ahead(next_values, more));
  }
};

}  // namespace
}  // namespace minimemo
