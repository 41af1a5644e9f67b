// The inverse transform on AMX: loud components of 32 tokens times 32 columns of the basis in four tiles. The sums are
// whole numbers, and leave the tiles group by group as they leave the registers of AVX-512: the bits are the same.
#include "format.h"

#if defined(MINIMEMO_AMX)
#include "target.h"
#include "transform.h"

TARGET_BEGIN(AVX512_AMX)
#include "simd_avx512.h"
//
#include "tiles.h"

namespace minimemo {
namespace {

constexpr int kTokens = 2 * kTileRows;
static_assert(kTokens <= kPadding && kLaidOut == 64 && kColumns == 32);

// c (tokens, kColumns) += a group of loud components times the tile's columns of the basis. Tokens of a block's end that
// are not there are multiplied, whatever their bytes are, and left out.
void add_group(const InverseTransform& job, const Spread& spread, int64_t tile, int64_t group, float* c) {
  alignas(64) int32_t products[kTokens * kColumns];
  const int64_t at = tile * spread.groups + group;
  const float* scales = job.scales + at * kColumns;
  const __m512 left = _mm512_loadu_ps(scales), right = _mm512_loadu_ps(scales + 16);
  const int steps = (quads_of(job, group) + 15) / 16;
  Tiles tiles;
  for (int i = 0; i < 8; i++) tiles.shape(i, kTileRows, 64);
  _tile_loadconfig(&tiles);
  for (int64_t first = 0; first < job.tokens; first += kTokens) {
    const int8_t* bytes = spread.bytes + (group * job.tokens + first) * kComponents;
    const uint8_t* packed = job.packed + at * kComponents * kColumns;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int step = 0; step < steps; step++, bytes += kLaidOut, packed += kLaidOut * kColumns) {
      _tile_loadd(4, bytes, kComponents);
      _tile_loadd(6, packed, 4 * kColumns);
      _tile_dpbsud(0, 4, 6);
      _tile_loadd(7, packed + 64, 4 * kColumns);
      _tile_dpbsud(1, 4, 7);
      _tile_loadd(5, bytes + kTileRows * kComponents, kComponents);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, products, 4 * kColumns);
    _tile_stored(1, products + 16, 4 * kColumns);
    _tile_stored(2, products + kTileRows * kColumns, 4 * kColumns);
    _tile_stored(3, products + kTileRows * kColumns + 16, 4 * kColumns);
    const int64_t tokens = job.tokens - first < kTokens ? job.tokens - first : kTokens;
    float* to = c + first * kColumns;
    for (int64_t t = 0; t < tokens; t++, to += kColumns) {
      const int32_t* from = products + t * kColumns;
      const __m512i sum = _mm512_set1_epi32(spread.sums[group * job.tokens + first + t]);
      const __m512i one = _mm512_sub_epi32(_mm512_load_si512(from), sum);
      const __m512i other = _mm512_sub_epi32(_mm512_load_si512(from + 16), sum);
      _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(one), left, _mm512_load_ps(to)));
      _mm512_store_ps(to + 16, _mm512_fmadd_ps(_mm512_cvtepi32_ps(other), right, _mm512_load_ps(to + 16)));
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace minimemo

#include "transform_piece.h"
TARGET_END

namespace minimemo {
Inverse amx_inverse() { return {run_piece, 127}; }
}  // namespace minimemo
#endif
