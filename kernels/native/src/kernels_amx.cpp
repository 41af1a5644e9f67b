// Products of several rows on AMX, whose tiles multiply 16 rows with 16 rows of a matrix at once; one row, and whatever
// else, as with AVX-512. Of integers the bits are those of every other variant: sums inside a group, then the groups in
// column order. Of many rows both factors are rounded to bfloat16 and a tile adds up all columns: 1.5 times as quick as
// with integers, whose groups each have to leave the tiles, with half the error.
#include "format.h"

#if defined(MINIMEMO_AMX)
#include "target.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

TARGET_BEGIN(AVX512_AMX)
#include "simd_avx512.h"
//
#include "tiles.h"
#include "unpack.h"

namespace minimemo {
namespace {

constexpr int kLeast[2] = {5, 8};    // rows from which on tiles are quicker than vectors: groups of 32, of 16 columns
constexpr int kBytes = kBlock * 16;  // of an unpacked block

// Registers 0 and 1: sums of 16 rows; 2 and 3: their activations; 4 and 5: codes. 6 and 7: sums and activations of the
// rows that are left over.
Tiles tiles_of(int columns, int left) {
  Tiles tiles;
  for (int i = 0; i < 2; i++) {
    tiles.shape(i, kTileRows, kTile * 4);
    tiles.shape(i + 2, kTileRows, columns);
    tiles.shape(i + 4, columns / 4, kTile * 4);
  }
  tiles.shape(6, left ? left : kTileRows, kTile * 4);
  tiles.shape(7, left ? left : kTileRows, columns);
  return tiles;
}

// products (rows, 16) = activations (rows, columns), a block of bytes from one row to the next, times unpacked codes.
#define MULTIPLY(SUMS, ROWS, CODES)          \
  _tile_zero(SUMS);                          \
  _tile_loadd(ROWS, activations, kBlock);    \
  _tile_loadd(CODES, codes, 64);             \
  _tile_dpbssd(SUMS, ROWS, CODES);           \
  _tile_stored(SUMS, products, 64)
template <bool kLeft>
INLINE void multiply(const int8_t* activations, const int8_t* codes, int which, int32_t* products) {
  if constexpr (kLeft) {
    MULTIPLY(6, 7, 4);
  } else if (which) {
    MULTIPLY(1, 3, 5);
  } else {
    MULTIPLY(0, 2, 4);
  }
}
#undef MULTIPLY

// The next columns of a tile of the matrix, unpacked: at most kSuper of them.
struct Columns {
  int64_t first_block, blocks;
  const int8_t* codes;      // (blocks, kBytes)
  const float* scales;      // (groups, 16)
  const float* offsets;     // the same, or null
};

// Rows first .. first + count - 1 of the activations, times those columns, added to sums (count, 16). The two planes of
// a fine row are two rows of a tile.
template <int kGroup, bool kFine, bool kLeft>
INLINE void add_rows(const Columns& at, const Activations& x, const GroupSums& groups, int first, int count,
                     float* to) {
  constexpr int kPer = kBlock / kGroup, kPlanes = kFine ? 2 : 1, kRows = kLeft ? 0 : kTileRows / kPlanes;
  alignas(64) int32_t products[2][kPer][kTileRows * kTile];  // one block's while the next one's are computed
  const auto compute = [&](int64_t b) INLINE_LAMBDA {
    const int8_t* own = x.bytes + ((at.first_block + b) * x.n + first) * kBlock * kPlanes;
    for (int g = 0; g < kPer; g++)
      multiply<kLeft>(own + g * kGroup, at.codes + b * kBytes + g * kGroup * kTile, (g + int(b)) & 1,
                      products[b & 1][g]);
  };
  Floats sums[kTileRows];
  each_row<kRows>(count, [&](int r) INLINE_LAMBDA { sums[r] = load_floats(to + r * kTile); });
  compute(0);
  for (int64_t b = 0; b < at.blocks; b++) {
    if (b + 1 < at.blocks) compute(b + 1);
    const float* factor = x.scales + (at.first_block + b) * x.n + first;
    for (int g = 0; g < kPer; g++) {
      const Floats scale = load_floats(at.scales + (b * kPer + g) * kTile);
      each_row<kRows>(count, [&](int r) INLINE_LAMBDA {
        const int32_t* from = products[b & 1][g] + r * kPlanes * kTile;
        __m512i dot = _mm512_load_si512(from);
        if (kFine) dot = _mm512_add_epi32(_mm512_slli_epi32(dot, 7), _mm512_load_si512(from + kTile));
        sums[r] = fused_add(_mm512_cvtepi32_ps(dot), scale * splat(factor[r]), sums[r]);
      });
    }
  }
  if (at.offsets)
    for (int64_t g = 0; g < at.blocks * kPer; g++) {
      const Floats offset = load_floats(at.offsets + g * kTile);
      const float* factor = groups.offset + (at.first_block * kPer + g) * x.n + first;
      each_row<kRows>(count, [&](int r) INLINE_LAMBDA { sums[r] = fused_add(offset, splat(factor[r]), sums[r]); });
    }
  each_row<kRows>(count, [&](int r) INLINE_LAMBDA { store(to + r * kTile, sums[r]); });
}

// sums (n, kTiles x 16) of tiles `tile` and on, plus bias, to their places in out. All tiles of a row together: rows are
// pages apart.
template <int kTiles>
INLINE void write_rows(const Header& h, int64_t tile, int n, const float* sums, float* out, int64_t stride,
                       const float* bias) {
  __mmask16 kept[kTiles];
  Floats added[kTiles];
  const int64_t row0 = tile * kTile;
  for (int t = 0; t < kTiles; t++) {
    const int64_t left = h.rows - row0 - t * kTile;
    kept[t] = __mmask16(left < kTile ? (1u << left) - 1 : 0xffff);
    added[t] = bias ? _mm512_maskz_loadu_ps(kept[t], bias + row0 + t * kTile) : splat(0.0f);
  }
  for (int r = 0; r < n; r++)
    for (int t = 0; t < kTiles; t++)
      _mm512_mask_storeu_ps(out + r * stride + row0 + t * kTile, kept[t],
                            load_floats(sums + (r * kTiles + t) * kTile) + added[t]);
}

template <int kBits, int kGroup, bool kFine>
void dot_tiles(const uint8_t* matrix, const Activations& x, const GroupSums& groups, int64_t first_tile,
               int64_t last_tile, float* out, int64_t stride, const float* bias) {
  constexpr int kPer = kBlock / kGroup, kPlanes = kFine ? 2 : 1, kRows = kTileRows / kPlanes;
  const Header h = header_of(matrix);
  const int64_t blocks = blocks_of(h), scale_bytes = param_bytes(h, h.scale_kind);
  const int64_t offset_bytes = param_bytes(h, h.offset_kind);
  const int whole = x.n / kRows * kRows;
  const Tiles tiles = tiles_of(kGroup, (x.n - whole) * kPlanes);
  _tile_loadconfig(&tiles);
  const Bytes zero = mask(char(h.zero));
  alignas(64) float scales[kSuper / kGroup * kTile], offsets[kSuper / kGroup * kTile], sums[kMaxRows * kTile];
  alignas(64) int8_t unpacked[kSuper / kBlock * kBytes];
  for (int64_t tile = first_tile; tile < last_tile; tile++) {
    const uint8_t* codes = matrix + sizeof h + tile * blocks * (kBits * 64);
    std::memset(sums, 0, size_t(x.n) * kTile * sizeof(float));
    for (int64_t block = 0; block < blocks; block += kSuper / kBlock) {
      const int64_t super = block / (kSuper / kBlock);
      const int64_t count = blocks - block < kSuper / kBlock ? blocks - block : kSuper / kBlock;
      decode(matrix + h.scales_at + tile * scale_bytes, h.scale_kind, kGroup, super, count * kPer, scales);
      if (offset_bytes)
        decode(matrix + h.offsets_at + tile * offset_bytes, h.offset_kind, kGroup, super, count * kPer, offsets);
      for (int64_t b = 0; b < count; b++, codes += kBits * 64) {
        fetch_ahead<kBits>(codes);
        Bytes u[8];
        unpack<kBits>(codes, u);
        for (int j = 0; j < 8; j++) store(reinterpret_cast<uint8_t*>(unpacked) + b * kBytes + j * 64, u[j] - zero);
      }
      written();
      const Columns at{block, count, unpacked, scales, offset_bytes ? offsets : nullptr};
      for (int r = 0; r < whole; r += kRows)
        add_rows<kGroup, kFine, false>(at, x, groups, r, kRows, sums + r * kTile);
      if (whole < x.n)
        add_rows<kGroup, kFine, true>(at, x, groups, whole, x.n - whole, sums + whole * kTile);
    }
    write_rows<1>(h, tile, x.n, sums, out, stride, bias);
  }
  _tile_release();
}

// Many rows: 4 tiles of the matrix, 256 columns of them at a time.

constexpr int kManyRows = 256;  // of a pass
constexpr int kWide = 4;        // tiles of the matrix

// Bytes `at` .. of the lanes of u, as floats in 256 .. 512: bits 15 to 22 of a number of that size count in ones.
template <int kAt>
INLINE Floats spread(__m512i u) {
  const __m512i moved = kAt == 0   ? _mm512_slli_epi32(u, 15)
                        : kAt == 1 ? _mm512_slli_epi32(u, 7)
                        : kAt == 2 ? _mm512_srli_epi32(u, 1)
                                   : _mm512_srli_epi32(u, 9);
  constexpr int kAndOr = 0xea;  // (moved & mask) | size
  return Floats(_mm512_ternarylogic_epi32(moved, _mm512_set1_epi32(0x7f8000), _mm512_set1_epi32(0x43800000), kAndOr));
}

struct PairOrder {  // words i and 16 + i of a vector side by side
  alignas(64) uint16_t words[32] = {};
  constexpr PairOrder() {
    for (int i = 0; i < 32; i++) words[i] = uint16_t(i / 2 + i % 2 * 16);
  }
};
constexpr PairOrder kPairOrder;

// Columns 4j .. 4j + 3 of 16 rows -> their values in bfloat16, pairs of columns in each lane.
INLINE void widen(__m512i u, Floats scale, Floats low, uint16_t* to) {
  const __m512i order = _mm512_load_si512(kPairOrder.words);
  const auto pairs = [&](Floats first, Floats second) INLINE_LAMBDA {
    const __m512i both = __m512i(_mm512_cvtne2ps_pbh(fused_add(second, scale, low), fused_add(first, scale, low)));
    return _mm512_permutexvar_epi16(order, both);
  };
  _mm512_store_si512(to, pairs(spread<0>(u), spread<1>(u)));
  _mm512_store_si512(to + 32, pairs(spread<2>(u), spread<3>(u)));
}

constexpr int kHalves = kBlock * kTile;  // of a block

// The next `count` blocks of a tile, unpacked and widened: to (count, 16 pairs, 16 rows, 2).
template <int kBits, int kGroup>
INLINE void widen_blocks(const Header& h, const uint8_t* matrix, int64_t tile, int64_t block, int64_t count,
                         uint16_t* to) {
  constexpr int kPer = kBlock / kGroup;
  alignas(64) float scales[kSuper / kGroup * kTile], offsets[kSuper / kGroup * kTile];
  const int64_t super = block / (kSuper / kBlock);
  const int64_t scale_bytes = param_bytes(h, h.scale_kind), offset_bytes = param_bytes(h, h.offset_kind);
  decode(matrix + h.scales_at + tile * scale_bytes, h.scale_kind, kGroup, super, count * kPer, scales);
  if (offset_bytes)
    decode(matrix + h.offsets_at + tile * offset_bytes, h.offset_kind, kGroup, super, count * kPer, offsets);
  const uint8_t* codes = matrix + sizeof h + (tile * blocks_of(h) + block) * (kBits * 64);
  const Floats zero = splat(-256.0f - float(h.zero));
  for (int64_t b = 0; b < count; b++, codes += kBits * 64, to += kHalves) {
    fetch_ahead<kBits>(codes);
    Bytes u[8];
    unpack<kBits>(codes, u);
    for (int g = 0; g < kPer; g++) {
      const int64_t at = (b * kPer + g) * kTile;
      const Floats scale = load_floats(scales + at);
      const Floats low = fused_add(scale, zero, offset_bytes ? load_floats(offsets + at) : splat(0.0f));
#pragma GCC unroll 8
      for (int j = g * 8 / kPer; j < (g + 1) * 8 / kPer; j++) widen(__m512i(u[j]), scale, low, to + j * 64);
    }
  }
}

// sums (16, kTiles x 16) += 16 rows of activations times `blocks` blocks of kTiles tiles, `apart` halves from one tile to
// the next.
template <int kTiles>
INLINE void add_tiles(const uint16_t* rows, const uint16_t* tiles, int64_t apart, int64_t blocks, float* sums) {
  constexpr int kStride = kTiles * kTile * 4;
#define EACH(DO)                             \
  do {                                       \
    DO(0, 5);                                \
    if constexpr (kTiles > 1) { DO(1, 6); }  \
    if constexpr (kTiles > 2) { DO(2, 7); }  \
    if constexpr (kTiles > 3) { DO(3, 5); }  \
  } while (false)
#define LOAD(I, B) _tile_loadd(I, sums + I * kTile, kStride)
#define MULTIPLY(I, B)                       \
  _tile_loadd(B, tiles + I * apart, 64);     \
  _tile_dpbf16ps(I, 4, B)
#define STORE(I, B) _tile_stored(I, sums + I * kTile, kStride)
  EACH(LOAD);
  for (int64_t b = 0; b < blocks; b++, rows += kHalves, tiles += kHalves) {
    _tile_loadd(4, rows, 64);
    EACH(MULTIPLY);
  }
  EACH(STORE);
#undef EACH
#undef LOAD
#undef MULTIPLY
#undef STORE
}

template <int kBits, int kGroup, int kTiles>
void multiply_many(const uint8_t* matrix, const Activations& x, int64_t tile, float* out, int64_t stride,
                   const float* bias) {
  constexpr int kColumns = kTiles * kTile, kBlocks = kSuper / kBlock;
  alignas(64) uint16_t wide[kTiles * kBlocks * kHalves];
  alignas(64) float sums[kManyRows * kColumns];
  const Header h = header_of(matrix);
  const int64_t blocks = blocks_of(h);
  const int groups = (x.n + kTileRows - 1) / kTileRows;
  std::memset(sums, 0, size_t(groups) * kTileRows * kColumns * sizeof(float));
  for (int64_t block = 0; block < blocks; block += kBlocks) {
    const int64_t count = blocks - block < kBlocks ? blocks - block : kBlocks;
    for (int t = 0; t < kTiles; t++)
      widen_blocks<kBits, kGroup>(h, matrix, tile + t, block, count, wide + t * kBlocks * kHalves);
    written();
    for (int g = 0; g < groups; g++)
      add_tiles<kTiles>(x.halves + (g * blocks + block) * kHalves, wide, kBlocks * kHalves, count,
                        sums + g * kTileRows * kColumns);
  }
  write_rows<kTiles>(h, tile, x.n, sums, out, stride, bias);
}

template <int kBits, int kGroup>
void many(const uint8_t* matrix, const Activations& x, const GroupSums&, int64_t first, int64_t last, float* out,
          int64_t stride, const float* bias) {
  Tiles tiles;
  for (int i = 0; i < 8; i++) tiles.shape(i, kTileRows, 64);
  _tile_loadconfig(&tiles);
  for (int64_t tile = first; tile < last; tile += kWide) {
    const auto run = last - tile == 1   ? multiply_many<kBits, kGroup, 1>
                     : last - tile == 2 ? multiply_many<kBits, kGroup, 2>
                     : last - tile == 3 ? multiply_many<kBits, kGroup, 3>
                                        : multiply_many<kBits, kGroup, kWide>;
    run(matrix, x, tile, out, stride, bias);
  }
  _tile_release();
}

void quantize(const float* x, int64_t columns, int first, int last, int64_t first_block, int64_t last_block,
              const Activations& to) {
  if (!to.halves) return avx512_kernels()->quantize(x, columns, first, last, first_block, last_block, to);
  for (int r = first; r < last; r++)
    for (int64_t block = first_block; block < last_block; block++) {
      const float* from = x + r * columns + block * kBlock;
      const int64_t left = columns - block * kBlock;
      const __mmask32 kept = left < kBlock ? (__mmask32(1) << left) - 1 : ~__mmask32(0);
      const __m512 low = _mm512_maskz_loadu_ps(__mmask16(kept), from);
      const __m512 high = _mm512_maskz_loadu_ps(__mmask16(kept >> 16), from + 16);
      uint16_t* at = to.halves + (r / kTileRows * to.blocks + block) * kHalves + r % kTileRows * kBlock;
      _mm512_store_si512(at, __m512i(_mm512_cvtne2ps_pbh(high, low)));
    }
}

template <int kBits, int kGroup>
void dot_either(const uint8_t* matrix, const Activations& x, const GroupSums& sums, int64_t first, int64_t last,
                float* out, int64_t stride, const float* bias) {
  const auto run = x.halves ? many<kBits, kGroup>
                   : x.fine ? dot_tiles<kBits, kGroup, true>
                            : dot_tiles<kBits, kGroup, false>;
  run(matrix, x, sums, first, last, out, stride, bias);
}

void dot(const uint8_t* matrix, const Activations& x, const GroupSums& sums, int64_t first, int64_t last, float* out,
         int64_t stride, const float* bias) {
  const Header h = header_of(matrix);
  const auto run = !x.halves && x.n < kLeast[h.group == 16] ? avx512_kernels()->dot
                   : h.group == 16 ? (h.bits == 6 ? dot_either<6, 16> : dot_either<8, 16>)
                   : h.bits == 4   ? dot_either<4, 32>
                   : h.bits == 5   ? dot_either<5, 32>
                                   : dot_either<8, 32>;
  run(matrix, x, sums, first, last, out, stride, bias);
}

}  // namespace
TARGET_END

const Kernels* amx_kernels() {
  static const Kernels kernels = [] {
    Kernels tiled = *avx512_kernels();
    tiled.name = "amx", tiled.many_rows = kManyRows, tiled.quantize = quantize, tiled.dot = dot;
    return tiled;
  }();
  return &kernels;
}

// The processor has tiles of bytes and of bfloat16, and the system grants the room to keep them in, which a process has to
// ask for: for all of its threads.
bool may_use_tiles() {
  constexpr unsigned kTiles = 1u << 24 | 1u << 25 | 1u << 22;  // amx-tile, amx-int8, amx-bf16
  constexpr long kAsk = 0x1023, kTileData = 18;                // ARCH_REQ_XCOMP_PERM
  static const bool granted = [] {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) == kTiles &&
           syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
  }();
  return granted;
}

}  // namespace minimemo
#endif
