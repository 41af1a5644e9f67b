// One block of weights times all activation rows, where a vector is a whole tile.
#pragma once

#include "unpack.h"

namespace minimemo {
namespace {

// codes: a block of 16 rows; scale: (32 / kGroup, 16); zero: (32 / kGroup, n); added to sums (n). kRows: n, or 0.
template <int kBits, int kGroup, bool kFine, int kRows>
INLINE void block_product(const uint8_t* codes, const float* scale, const Activations& x, int64_t block,
                          const int32_t* zero, Floats* sums) {
  static_assert(kLanes == kTile, "a vector is a whole tile here");
  constexpr int kStep = kBlock * (kFine ? 2 : 1);
  const float* factor = x.scales + block * x.n;
  const Quantized* q = quantized(x) + block * x.n * kStep;
  Bytes u[8];
  unpack<kBits>(codes, u);
  const Floats first = load_floats(scale), second = load_floats(scale + (kGroup == 16 ? kTile : 0));
  each_row<kRows>(x.n, [&](int r) INLINE_LAMBDA {
    const Quantized* own = q + r * kStep;
    if constexpr (kGroup == 16) {
      const Floats sum = finish(dot_bytes<4, kFine>(u, own), zero[r], first, factor[r], sums[r]);
      sums[r] = finish(dot_bytes<4, kFine>(u + 4, own + 16), zero[x.n + r], second, factor[r], sum);
    } else {
      sums[r] = finish(dot_bytes<8, kFine>(u, own), zero[r], first, factor[r], sums[r]);
    }
  });
}

}  // namespace
}  // namespace minimemo
