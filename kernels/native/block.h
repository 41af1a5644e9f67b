// One block of weights times all activation rows, where a vector is a whole tile.
#pragma once

#include "unpack.h"

namespace minimemo {
namespace {

// codes: a block of 16 rows; scale: (32 / kGroup, 16); zero: (32 / kGroup, n); added to sums (n, 16).
template <int kBits, int kGroup, bool kFine>
INLINE void block_product(const uint8_t* codes, const float* scale, const Activations& x, int64_t block,
                          const int32_t* zero, float* sums) {
  static_assert(kLanes == kTile, "a vector is a whole tile here");
  constexpr int kStep = kBlock * (kFine ? 2 : 1);
  const float* factor = x.scales + block * x.n;
  const Quantized* q = quantized(x) + block * x.n * kStep;
  Bytes u[8];
  unpack<kBits>(codes, u);
  for (int r = 0; r < x.n; r++, q += kStep, sums += kTile) {
    if constexpr (kGroup == 16) {
      finish(dot_bytes<4, kFine>(u, q), zero[r], scale, factor[r], sums);
      finish(dot_bytes<4, kFine>(u + 4, q + 16), zero[x.n + r], scale + kTile, factor[r], sums);
    } else {
      finish(dot_bytes<8, kFine>(u, q), zero[r], scale, factor[r], sums);
    }
  }
}

}  // namespace
}  // namespace minimemo
