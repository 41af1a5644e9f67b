// One block of weights times all activation rows, on AVX2, where a vector is half a tile: 8 rows.
//
// Codes of up to 6 bits meet bytes (vpmaddubsw; its 16-bit sums must not saturate). Codes of 8 bits meet 16-bit
// activations (vpmaddwd), which is no slower than the sign trick that products of 8 by 8 bits would need.
#pragma once

#include "unpack.h"

namespace minimemo {
namespace {

// How many products of byte pairs fit into 16-bit sums: codes < 2^bits, activations of up to 127, or 64 if fine.
template <int kBits, bool kFine>
constexpr int run_length() {
  constexpr int kLargest = 32767 / (2 * ((1 << kBits) - 1) * (kFine ? 64 : 127));
  static_assert(kLargest >= 2, "16-bit sums would saturate");
  return kLargest >= 8 ? 8 : kLargest >= 4 ? 4 : 2;
}

// As finish() of unpack.h, on sums in memory.
INLINE void finish(Ints dot, int32_t zero, const float* scale, float factor, float* sum) {
  store(sum, finish(dot, zero, load_floats(scale), factor, load_floats(sum)));
}

// The weight of a plane of fine activations: 128 and 1.
template <bool kFine>
INLINE __m256i plane_weight(int plane) {
  return _mm256_set1_epi16(kFine && plane == 0 ? 128 : 1);
}

// sum += value, in this place: left to reorder, GCC fetches broadcasts early, spills them, and takes a fifth longer.
INLINE void add_here(__m256i& sum, __m256i value) {
  sum = _mm256_add_epi16(sum, value);
  asm("" : "+x"(sum));
}

// kCount vectors (4 columns each) times the activations at q, and for fine ones at q + 32.
template <int kBits, int kCount, bool kFine>
INLINE Ints dot_bytes(const Bytes* u, const int8_t* q) {
  constexpr int kRun = run_length<kBits, kFine>() < kCount ? run_length<kBits, kFine>() : kCount;
  constexpr int kPlanes = kFine ? 2 : 1;
  __m256i sum;
  for (int j = 0; j < kCount; j += kRun) {
    __m256i part[kPlanes];
    for (int i = j; i < j + kRun; i++)
      for (int plane = 0; plane < kPlanes; plane++) {
        const __m256i product = _mm256_maddubs_epi16(__m256i(u[i]), four(q + plane * kBlock + 4 * i));
        if (i == j)
          part[plane] = product;
        else
          add_here(part[plane], product);
      }
    for (int plane = 0; plane < kPlanes; plane++) {
      const __m256i wide = _mm256_madd_epi16(part[plane], plane_weight<kFine>(plane));
      sum = plane == 0 && j == 0 ? wide : _mm256_add_epi32(sum, wide);
    }
  }
  return Ints(sum);
}

template <int kBits, int kGroup, bool kFine>
INLINE void bytes_product(const uint8_t* codes, const float* scale, const Activations& x, int64_t block,
                          const int32_t* zero, float* sums) {
  constexpr int kStep = kBlock * (kFine ? 2 : 1);
  const float* factor = x.scales + block * x.n;
  for (int lane = 0; lane < kTile; lane += kLanes, scale += kLanes, sums += kLanes) {
    const int8_t* q = x.bytes + block * x.n * kStep;
    Bytes u[8];
    unpack<kBits>(codes + lane * 4, u);
    for (int r = 0; r < x.n; r++, q += kStep) {
      float* sum = sums + r * kTile;
      if constexpr (kGroup == 16) {
        finish(dot_bytes<kBits, 4, kFine>(u, q), zero[r], scale, factor[r], sum);
        finish(dot_bytes<kBits, 4, kFine>(u + 4, q + 16), zero[x.n + r], scale + kTile, factor[r], sum);
      } else {
        finish(dot_bytes<kBits, 8, kFine>(u, q), zero[r], scale, factor[r], sum);
      }
    }
  }
}

// One activation row: both halves of the tile at once share its broadcasts, of which there are as many as products.
// 8 % quicker for fine activations; the same for coarse ones, which wait for memory.
template <int kBits, bool kFine, int kAt>
INLINE void pair_step(const Bytes (*v)[kBits], const int8_t* q, __m256i (*part)[2], __m256i* sum) {
  constexpr int kRun = run_length<kBits, kFine>();
  for (int half = 0; half < 2; half++) {
    const __m256i u = __m256i(extract<kBits, kAt>(v[half]));
    for (int plane = 0; plane < (kFine ? 2 : 1); plane++) {
      const __m256i product = _mm256_maddubs_epi16(u, four(q + plane * kBlock + 4 * kAt));
      part[half][plane] = kAt % kRun == 0 ? product : _mm256_add_epi16(part[half][plane], product);
      if (kAt % kRun < kRun - 1) continue;
      const __m256i wide = _mm256_madd_epi16(part[half][plane], plane_weight<kFine>(plane));
      sum[half] = kAt == kRun - 1 && plane == 0 ? wide : _mm256_add_epi32(sum[half], wide);
    }
  }
}

template <int kBits, bool kFine>
INLINE void pair_product(const uint8_t* codes, const float* scale, const int8_t* q, int32_t zero, float factor,
                         float* sums) {
  Bytes v[2][kBits];
  load_block<kBits>(codes, v[0]);
  load_block<kBits>(codes + 32, v[1]);
  __m256i part[2][2], sum[2];
  pair_step<kBits, kFine, 0>(v, q, part, sum);
  pair_step<kBits, kFine, 1>(v, q, part, sum);
  pair_step<kBits, kFine, 2>(v, q, part, sum);
  pair_step<kBits, kFine, 3>(v, q, part, sum);
  pair_step<kBits, kFine, 4>(v, q, part, sum);
  pair_step<kBits, kFine, 5>(v, q, part, sum);
  pair_step<kBits, kFine, 6>(v, q, part, sum);
  pair_step<kBits, kFine, 7>(v, q, part, sum);
  finish(Ints(sum[0]), zero, scale, factor, sums);
  finish(Ints(sum[1]), zero, scale + kLanes, factor, sums + kLanes);
}

// 8-bit codes, 16 columns at a time: their 16-bit forms, even and odd columns apart, fill half of the registers.
template <int kGroup>
INLINE void words_product(const uint8_t* codes, const float* scale, const Activations& x, int64_t block,
                          const int32_t* zero, float* sums) {
  const float* factor = x.scales + block * x.n;
  for (int lane = 0; lane < kTile; lane += kLanes, scale += kLanes, sums += kLanes) {
    Ints first[kMaxRows];
    for (int c = 0; c < 2; c++) {
      __m256i w[8];
      for (int j = 0; j < 4; j++) {
        const __m256i v = __m256i(load_bytes(codes + lane * 4 + c * 256 + 64 * j));
        w[2 * j] = _mm256_and_si256(v, _mm256_set1_epi16(255));
        w[2 * j + 1] = _mm256_srli_epi16(v, 8);
      }
      const int16_t* q = x.words + block * x.n * kBlock + c * 16;
      for (int r = 0; r < x.n; r++, q += kBlock) {
        __m256i sum = _mm256_madd_epi16(w[0], four(q));
        for (int j = 1; j < 8; j++) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w[j], four(q + 2 * j)));
        if (kGroup == 16)
          finish(Ints(sum), zero[c * x.n + r], scale + c * kTile, factor[r], sums + r * kTile);
        else if (c == 0)
          first[r] = Ints(sum);
        else
          finish(first[r] + Ints(sum), zero[r], scale, factor[r], sums + r * kTile);
      }
    }
  }
}

// codes: a block of 16 rows; scale: (32 / kGroup, 16); zero: (32 / kGroup, n); added to sums (n, 2). kRows is 0.
template <int kBits, int kGroup, bool kFine, int kRows>
INLINE void block_product(const uint8_t* codes, const float* scale, const Activations& x, int64_t block,
                          const int32_t* zero, Floats* to) {
  static_assert(kRows == 0, "16 registers hold a block and no sums of several rows");
  float* sums = reinterpret_cast<float*>(to);
  if constexpr (!meets_bytes(kBits))
    words_product<kGroup>(codes, scale, x, block, zero, sums);
  else if (kGroup == 32 && x.n == 1)
    pair_product<kBits, kFine>(codes, scale, x.bytes + block * kBlock * (kFine ? 2 : 1), *zero, x.scales[block], sums);
  else
    bytes_product<kBits, kGroup, kFine>(codes, scale, x, block, zero, sums);
}

}  // namespace
}  // namespace minimemo
