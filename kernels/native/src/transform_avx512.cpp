#if defined(__x86_64__)
#include "format.h"
#include "target.h"
#include "transform.h"

TARGET_BEGIN(AVX512)
#include "simd_avx512.h"

namespace minimemo {
namespace {

// 28 sums, 2 vectors of the basis and one broadcast in 32 registers.
template <int kRows>
INLINE void multiply(const int8_t* bytes, const int32_t* sums, const uint8_t* packed, const float* scales, int quads,
                     float* c) {
  __m512i lefts[kRows], rights[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++) lefts[r] = rights[r] = _mm512_set1_epi32(-sums[r]);
#pragma GCC unroll 1
  for (int q = 0; q < quads; q++, packed += 4 * kColumns, bytes += 4) {
    const __m512i left = _mm512_load_si512(packed), right = _mm512_load_si512(packed + 64);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; r++) {
      const __m512i x = four(bytes + r * kComponents);
      add_products(lefts[r], left, x);
      add_products(rights[r], right, x);
    }
  }
  const __m512 left = _mm512_loadu_ps(scales), right = _mm512_loadu_ps(scales + 16);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; r++, c += kColumns) {
    _mm512_store_ps(c, _mm512_fmadd_ps(_mm512_cvtepi32_ps(lefts[r]), left, _mm512_load_ps(c)));
    _mm512_store_ps(c + 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(rights[r]), right, _mm512_load_ps(c + 16)));
  }
}

template <int kRows>
INLINE void multiply_rows(int64_t rows, const int8_t* bytes, const int32_t* sums, const uint8_t* packed,
                          const float* scales, int quads, float* c) {
  for (; rows >= kRows; rows -= kRows, bytes += kRows * kComponents, sums += kRows, c += kRows * kColumns)
    multiply<kRows>(bytes, sums, packed, scales, quads, c);
  if constexpr (kRows > 1) {
    if (rows > 0) multiply_rows<(kRows > 4 ? 4 : kRows / 2)>(rows, bytes, sums, packed, scales, quads, c);
  }
}

// c (tokens, kColumns) += a group of loud components times the tile's columns of the basis.
void add_group(const InverseTransform& job, const Spread& spread, int64_t tile, int64_t group, float* c) {
  const int64_t at = tile * spread.groups + group;
  multiply_rows<14>(job.tokens, spread.bytes + group * job.tokens * kComponents, spread.sums + group * job.tokens,
                    job.packed + at * kComponents * kColumns, job.scales + at * kColumns, quads_of(job, group), c);
}

}  // namespace
}  // namespace minimemo

#include "transform_piece.h"
TARGET_END

namespace minimemo {
Inverse avx512_inverse() { return {run_piece, 127}; }
}  // namespace minimemo
#endif
