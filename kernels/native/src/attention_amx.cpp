// bfloat16 keys on AMX, whose tiles multiply 16 folded rows with 16 keys, 32 dims at a time; other stores as with AVX-512.
// A row of a tile does not know the others: in a step of several readers each gets the bits that it would have alone.
#include "attention.h"
#include "format.h"

#if defined(MINIMEMO_AMX)
#include "target.h"

TARGET_BEGIN(AVX512_AMX)
#include "attention_simd512.h"
//
#include "attention_bfloat16.h"
#include "tiles.h"

namespace minimemo {
namespace {

constexpr int kStepCells = 16;  // of a row that one product takes: 32 numbers

// c (16, 64) float32 = or += a (16, steps * 32) times b (steps * 32, 64); a_row, b_row, c_row: cells from one row to the
// next. Reads and writes all 16 rows.
template <bool kAdd>
INLINE void multiply_tiles(const uint32_t* a, int64_t a_row, const uint32_t* b, int64_t b_row, int steps, float* c,
                           int64_t c_row) {
#define EACH_SUM(DO) DO(0) DO(1) DO(2) DO(3)
#define BEGIN(I)                                    \
  if (kAdd)                                         \
    _tile_loadd(I, c + I * 16, c_row * 4);          \
  else                                              \
    _tile_zero(I);
#define MULTIPLY(I)                                 \
  _tile_loadd(5, b + I * 16, b_row * 4);            \
  _tile_dpbf16ps(I, 4, 5);
#define END(I) _tile_stored(I, c + I * 16, c_row * 4);
  written();
  EACH_SUM(BEGIN)
  for (int step = 0; step < steps; step++, a += kStepCells, b += kStepCells * b_row) {
    _tile_loadd(4, a, a_row * 4);
    EACH_SUM(MULTIPLY)
  }
  EACH_SUM(END)
#undef EACH_SUM
#undef BEGIN
#undef MULTIPLY
#undef END
}

// exp2_of within 5e-6, for what is rounded to 8 bits: a polynomial of degree 4 that is 1 at 0, and its exponent.
INLINE Floats rough_exp2_of(Floats x) {
  Ints exponent;
  const Floats f = fraction_of(x, exponent);
  Floats y = splat(9.58285321e-03f);
  y = multiply_add(y, f, splat(5.59064254e-02f));
  y = multiply_add(y, f, splat(2.40240986e-01f));
  y = multiply_add(y, f, splat(6.93124193e-01f));
  y = multiply_add(y, f, splat(1.0f));
  return Floats(Ints(y) + exponent);  // -127: 0
}

// Head dims that are multiples of 64; laid out as in Bfloat16Way.
struct TileWay : Bfloat16Way {
  static constexpr int kRows = kTileRows, kTogether = 2;

  Floats before;  // weights of 16 keys: a row of a tile, 32 of them, is written at once and so read without waiting

  void begin(int64_t) {
    direct = false;
    Tiles tiles;
    for (int i = 0; i < 6; i++) tiles.shape(i, kTileRows, 64);
    _tile_loadconfig(&tiles);
  }
  void score(int64_t row, int, float* scores, bool) {
    const int cells = dim / 2;
    const uint32_t* own = queries + row * planes * cells;
    for (int plane = 0; plane < planes; plane++) {
      // The planes of a query meet the same keys; their scores add up.
      if (plane == 0)
        multiply_tiles<false>(own, planes * cells, keys, kKeys, cells / kStepCells, scores, kTogether * kKeys);
      else
        multiply_tiles<true>(own + plane * cells, planes * cells, keys, kKeys, cells / kStepCells, scores,
                             kTogether * kKeys);
    }
  }
  static INLINE Floats weight(Floats x) { return rough_exp2_of(x); }
  INLINE void take_weights(uint32_t* to, float*, int vector, Floats weights) {
    if (vector % 2)
      _mm512_store_si512(to + vector / 2 * 16, __m512i(_mm512_cvtne2ps_pbh(weights, before)));
    else
      before = weights;
  }
  void add_values(int count, const uint32_t* weights, float* sums, const float* keep, bool) {
    for (int r = 0; r < count; r++)
      if (keep[r] != 1.0f)
        for (int d = 0; d < padded; d += kLanes)
          store(sums + r * padded + d, load_floats(sums + r * padded + d) * splat(keep[r]));
    for (int d = 0; d < dim; d += 64)
      multiply_tiles<true>(weights, kWeightCells, values + d, padded, kWeightCells / kStepCells, sums + d, padded);
  }
};

inline void run(const Attention& job, int64_t piece) {
  const Segment& s = segment_of(job, piece);
  if (s.store != kStoreBfloat16 || job.dim % 64 != 0) {
    avx512bf16_attention()->run(job, piece);
    return;
  }
  run_way<TileWay>(job, s, piece);
  _tile_release();
}

constexpr AttentionKernels kAttention{"amx", run, merge};

}  // namespace
TARGET_END
const AttentionKernels* amx_attention() { return &kAttention; }
}  // namespace minimemo
#endif
