#if defined(__x86_64__)
#include "format.h"
#include "target.h"
#include "transform.h"

TARGET_BEGIN(AVX512)
#include "simd_avx512.h"

namespace minimemo {
namespace {

constexpr int64_t kAhead = 16;  // rows

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

void run(const InverseTransform& job, const Spread& spread, int64_t tile) {
  alignas(64) float c[kMaxTokens * kColumns];
  for (int64_t i = 0; i < job.tokens * kColumns; i += 16) _mm512_store_ps(c + i, _mm512_setzero_ps());
  for (int64_t group = 0; group < spread.groups; group++) {
    const int64_t at = tile * spread.groups + group, left = job.dense - group * kComponents;
    multiply_rows<14>(job.tokens, spread.bytes + group * job.tokens * kComponents, spread.sums + group * job.tokens,
                      job.packed + at * kComponents * kColumns, job.scales + at * kColumns,
                      int(left < kComponents ? (left + 3) / 4 : kQuads), c);
  }
  const int64_t column = tile * kColumns;
  for (int64_t i = 0; i < spread.actives; i++) {
    const Active& active = spread.active[i];
    const uint16_t* from = job.basis + active.row * job.columns + column;
    // a row is one cache line far from the others
    if (i + kAhead < spread.actives) __builtin_prefetch(job.basis + spread.active[i + kAhead].row * job.columns + column);
    const __m512 left = widened(from), right = widened(from + 16);
    const Entry *at = spread.entries + active.first, *end = spread.entries + active.last;
    for (; at < end; at++) {
      float* to = c + int64_t(at->token) * kColumns;
      const __m512 symbol = _mm512_set1_ps(at->symbol);
      _mm512_store_ps(to, _mm512_fmadd_ps(symbol, left, _mm512_load_ps(to)));
      _mm512_store_ps(to + 16, _mm512_fmadd_ps(symbol, right, _mm512_load_ps(to + 16)));
    }
  }
  const __m512 step = _mm512_set1_ps(job.step), scale = _mm512_set1_ps(job.scale[column / job.dim]);
  const __m512 left = _mm512_loadu_ps(job.mean + column), right = _mm512_loadu_ps(job.mean + column + 16);
  float* out = job.out + column / job.dim * job.out_head + column % job.dim;
  for (int64_t t = 0; t < job.tokens; t++, out += job.dim) {
    const float* from = c + t * kColumns;
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_fmadd_ps(_mm512_load_ps(from), step, left), scale));
    _mm512_storeu_ps(out + 16, _mm512_mul_ps(_mm512_fmadd_ps(_mm512_load_ps(from + 16), step, right), scale));
  }
}

}  // namespace
TARGET_END
InversePiece avx512_inverse() { return run; }
}  // namespace minimemo
#endif
