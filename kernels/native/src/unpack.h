// From packed codes to vectors of bytes, from scales to floats, and from integer sums to float ones: over the operations of
// a simd_*.h.
#pragma once

#include <cstring>

#include "format.h"

namespace minimemo {
namespace {

// Vector kAt of a block's 8, out of its kBits packed ones.
//   4 bits: vector i holds i in its low half-bytes and i + 4 in its high ones.
//   5 bits: vectors 0-4 in the low 5 bits of the 5; the 3 x 5 bits of vectors 5-7 in their high 3.
//   6 bits: three in the low 6 bits of 3, the fourth in their high 2; twice.
// At 5 bits this takes 23 operations a block; a plane of half-bytes and one of fifth bits took 40.
template <int kBits, int kAt>
INLINE Bytes extract(const Bytes* v) {
  if constexpr (kBits == 8) return v[kAt];
  if constexpr (kBits == 4) return (kAt < 4 ? v[kAt % 4] : shift_right<4>(v[kAt % 4])) & mask(15);
  if constexpr (kBits == 5) {
    if constexpr (kAt < 5) return v[kAt] & mask(31);
    if constexpr (kAt < 7) return (shift_right<5>(v[kAt - 5]) & mask(7)) | (shift_right<3>(v[kAt - 2]) & mask(24));
    return (shift_right<5>(v[2]) & mask(7)) | (shift_right<2>(v[3]) & mask(8)) | (shift_right<1>(v[4]) & mask(16));
  }
  if constexpr (kBits == 6) {
    const Bytes* w = v + kAt / 4 * 3;
    if constexpr (kAt % 4 < 3) return w[kAt % 4] & mask(63);
    return (shift_right<6>(w[0]) & mask(3)) | (shift_right<4>(w[1]) & mask(12)) | (shift_right<2>(w[2]) & mask(48));
  }
}

// The packed vectors of a block; `p` is its first byte plus the lanes' offset in a vector.
template <int kBits>
INLINE void load_block(const uint8_t* p, Bytes v[kBits]) {
  for (int j = 0; j < kBits; j++) v[j] = load_bytes(p + 64 * j);
}

template <int kBits>
INLINE void unpack(const uint8_t* p, Bytes u[8]) {
  Bytes v[kBits];
  load_block<kBits>(p, v);
  u[0] = extract<kBits, 0>(v), u[1] = extract<kBits, 1>(v), u[2] = extract<kBits, 2>(v), u[3] = extract<kBits, 3>(v);
  u[4] = extract<kBits, 4>(v), u[5] = extract<kBits, 5>(v), u[6] = extract<kBits, 6>(v), u[7] = extract<kBits, 7>(v);
}

// A block that comes later than the one at `codes`.
template <int kBits>
INLINE void fetch_ahead(const uint8_t* codes) {
  constexpr int kAhead = 3072;  // bytes: 1024 to 8192 measured; 40 % quicker at one row than without
  for (int i = 0; i < kBits; i++) __builtin_prefetch(codes + kAhead + i * 64);
}

// Scales or offsets of `super`, a tile's next 256 columns, as floats (groups, 16 rows). `tile`: the tile's parameters.
inline void decode(const uint8_t* tile, int32_t kind, int group, int64_t super, int64_t groups, float* to) {
  const int per_super = kSuper / group;
  if (kind == kTwoLevel) {
    const uint8_t* at = tile + super * (kTile * 4 + per_super * kTile);
    float factors[kTile];
    std::memcpy(factors, at, sizeof factors);
    const int8_t* small = reinterpret_cast<const int8_t*>(at + sizeof factors);
    for (int64_t g = 0; g < groups; g++)
      for (int r = 0; r < kTile; r++) to[g * kTile + r] = float(small[g * kTile + r]) * factors[r];
  } else if (kind == kHalf) {
    widen_halves(reinterpret_cast<const uint16_t*>(tile) + super * per_super * kTile, groups * kTile, to);
  } else {
    std::memcpy(to, tile + super * per_super * kTile * 4, size_t(groups) * kTile * 4);
  }
}

// body(0) .. body(count - 1). kCount: the same number, where it is known and each is to have its own registers; or 0.
template <int kCount, typename Body>
INLINE void each_row(int count, Body body) {
  if constexpr (kCount > 0) {
#pragma GCC unroll 16
    for (int r = 0; r < kCount; r++) body(r);
  } else {
    for (int r = 0; r < count; r++) body(r);
  }
}

// sum + (dot - zero) * (scale * factor), for kLanes rows of the matrix and one of the activations.
INLINE Floats finish(Ints dot, int32_t zero, Floats scale, float factor, Floats sum) {
  return fused_add(__builtin_convertvector(dot - splat(zero), Floats), scale * splat(factor), sum);
}

}  // namespace
}  // namespace minimemo
