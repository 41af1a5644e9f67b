// bfloat16 keys on AMX: tiles multiply 16 folded rows with 16 keys, and in steps 16 keys with 8 folded rows, 32 dims at a
// time; other stores as with AVX-512.
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

INLINE void configure_tiles() {
  Tiles tiles;
  for (int i = 0; i < 7; i++) tiles.shape(i, kTileRows, 64);
  written();
  _tile_loadconfig(&tiles);
}

INLINE void keep_sums(int count, float* sums, const float* keep, int padded) {
  for (int r = 0; r < count; r++)
    if (keep[r] != 1.0f)
      for (int d = 0; d < padded; d += kLanes)
        store(sums + r * padded + d, load_floats(sums + r * padded + d) * splat(keep[r]));
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
    configure_tiles();
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
    keep_sums(count, sums, keep, padded);
    for (int d = 0; d < dim; d += 64)
      multiply_tiles<true>(weights, kWeightCells, values + d, padded, kWeightCells / kStepCells, sums + d, padded);
  }
};

// Of 16 keys the scores with 8 rows, both planes in a line, planes added up -> to[row * kKeys + key].
INLINE void turn_scores(const float* from, float* to) {
  __m512 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {  // keys i and 8 + i
    const auto sum = [&](const float* line) INLINE_LAMBDA {
      return _mm512_castps256_ps512(_mm256_add_ps(_mm256_load_ps(line), _mm256_load_ps(line + 8)));
    };
    r[i] = _mm512_shuffle_f32x4(sum(from + i * 16), sum(from + (8 + i) * 16), 0x44);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  const auto pairs = [](__m512 a, __m512 b, bool second) INLINE_LAMBDA {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return second ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y);
  };
  const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 4
  for (int row = 0; row < 4; row++) {
    const __m512d first = pairs(t[row / 2], t[row / 2 + 2], row % 2);       // keys 0 to 3 and 8 to 11
    const __m512d second = pairs(t[row / 2 + 4], t[row / 2 + 6], row % 2);  // keys 4 to 7 and 12 to 15
    _mm512_store_pd(to + row * kKeys, _mm512_permutex2var_pd(first, even, second));
    _mm512_store_pd(to + (row + 4) * kKeys, _mm512_permutex2var_pd(first, odd, second));
  }
}

// Steps, whose few rows leave most of a tile empty: keys and values are read as they lie, which spares laying them out.
// Keys are the rows of a product, and queries its columns: 8 first planes, then 8 second ones. Of the values' pairs, two
// dims of a token, a row of weights takes the first and another the second.
struct StepWay {
  static constexpr int kRows = 8, kTogether = 1;
  static constexpr int kWeightCells = 2 * kKeys;  // in the low halves of cells for even dims, in the high ones for odd
  int dim, padded, planes;  // planes: always two here
  uint32_t *keys, *values, *queries;  // queries: (strips, dim / 2, 16); keys, values: a last block
  const uint16_t *key_tokens, *value_tokens;
  alignas(64) float turned[kKeys * 16];

  void begin(int64_t rows) {
    __builtin_memset(queries, 0, size_t(rows + kRows - 1) / kRows * kRows * dim * 4);
    configure_tiles();
  }
  void take_query(const float* q, int64_t row) {
    uint32_t* to = queries + row / kRows * kRows * dim + row % kRows;
    alignas(32) uint32_t pairs[8];
    for (int d = 0; d < dim; d += 16, to += 8 * 16) {
      const Floats x = load_floats(q + d);
      const __m256i high = rounded(x);
      const Floats rest = x - Floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), high);
      for (int i = 0; i < 8; i++) to[i * 16] = pairs[i];
      _mm256_store_si256(reinterpret_cast<__m256i*>(pairs), rounded(rest));
      for (int i = 0; i < 8; i++) to[i * 16 + kRows] = pairs[i];
    }
  }
  void take_block(const Segment& s, int head, int64_t key, int count) {
    key_tokens = static_cast<const uint16_t*>(s.keys) + head * s.key_stride + key * dim;
    value_tokens = static_cast<const uint16_t*>(s.values) + head * s.value_stride + key * dim;
    if (count == kKeys) return;
    key_tokens = whole_block(key_tokens, count, keys);  // tiles read 64 tokens
    value_tokens = whole_block(value_tokens, count, values);
  }
  const uint16_t* whole_block(const uint16_t* tokens, int count, uint32_t* to) const {
    __builtin_memcpy(to, tokens, size_t(count) * dim * 2);
    __builtin_memset(to + count * dim / 2, 0, size_t(kKeys - count) * dim * 2);
    return reinterpret_cast<const uint16_t*>(to);
  }
#define EACH_PART(DO) DO(0) DO(1) DO(2) DO(3)
  void score(int64_t row, int, float* scores, bool) {
#define BEGIN(I) _tile_zero(I);
#define MULTIPLY(I)                                   \
  _tile_loadd(5, key_tokens + I * 16 * dim + d, dim * 2); \
  _tile_dpbf16ps(I, 5, 4);
#define END(I)                              \
  _tile_stored(I, turned + I * 16 * 16, 64);
    written();
    EACH_PART(BEGIN)
    for (int d = 0; d < dim; d += 32) {
      _tile_loadd(4, queries + row * dim + d / 2 * 16, 64);
      EACH_PART(MULTIPLY)
    }
    EACH_PART(END)
#undef BEGIN
#undef MULTIPLY
#undef END
    written();
    for (int t = 0; t < kKeys; t += 16) turn_scores(turned + t * 16, scores + t);
  }
  static INLINE Floats weight(Floats x) { return rough_exp2_of(x); }
  static INLINE void take_weights(uint32_t* to, float*, int vector, Floats weights) {
    const __m512i low = _mm512_cvtepu16_epi32(rounded(weights));
    _mm512_store_si512(to + vector * 16, low);
    _mm512_store_si512(to + kKeys + vector * 16, _mm512_slli_epi32(low, 16));
  }
  void finish_weights(int, uint32_t*, const float*) {}
  void add_values(int count, const uint32_t* weights, float* sums, const float* keep, bool) {
    keep_sums(count, sums, keep, padded);
    written();
    for (int d = 0; d < dim; d += 64, sums += 32) {  // rows of even dims and of odd ones in turn
      const uint16_t* at = value_tokens + d;
      _tile_loadd(0, sums, dim * 2);
      _tile_loadd(1, sums + 16, dim * 2);
      for (int t = 0; t < kKeys; t += 16, at += 16 * dim) {
        _tile_loadd(4, weights + t, kKeys * 4);
        _tile_loadd(5, at, dim * 2);
        _tile_loadd(6, at + 32, dim * 2);
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 6);
      }
      _tile_stored(0, sums, dim * 2);
      _tile_stored(1, sums + 16, dim * 2);
    }
    written();
  }
  static void arrange(float* sums, int dim) {
    alignas(64) float halves[kMaxDim];
    __builtin_memcpy(halves, sums, size_t(dim) * 4);
    for (int i = 0; i < dim / 2; i++) sums[2 * i] = halves[i], sums[2 * i + 1] = halves[dim / 2 + i];
  }
#undef EACH_PART
};

inline void run(const Attention& job, int64_t piece) {
  const Segment& s = segment_of(job, piece);
  if (s.store != kStoreBfloat16 || job.dim % 64 != 0) {
    avx512bf16_attention()->run(job, piece);
    return;
  }
  if (job.rows <= kFewRows)
    run_way<StepWay>(job, s, piece);
  else
    run_way<TileWay>(job, s, piece);
  _tile_release();
}

constexpr AttentionKernels kAttention{"amx", run, merge, true};

}  // namespace
TARGET_END
const AttentionKernels* amx_attention() { return &kAttention; }
}  // namespace minimemo
#endif
