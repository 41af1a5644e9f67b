// The packed matrix, shared by every file here.
//
// A matrix (rows, columns) of integer codes with one scale, and maybe one offset, a group of 16 or 32 columns:
// value = (stored - zero) * scale + offset, stored = code + zero >= 0. Stored codes have 4, 5 or 8 bits in groups of 32
// and 6 or 8 in groups of 16: what GGUF's formats need, and no kernel is compiled for more.
//
// It is cut into tiles of 16 rows and blocks of 32 columns. Unpacked, a block is 8 vectors of 64 bytes; vector j holds
// columns 4j .. 4j+3 of row r in bytes 4r .. 4r+3, so that one 32-bit lane is one row and four neighbouring columns, and
// four activations broadcast to all lanes meet 16 rows at once (AVX-512: one register, AVX2: two). Packed, a block is
// `bits` vectors of 64 bytes (see unpack() in kernels.cpp), and the blocks of a tile follow each other: a product reads
// memory in one forward stream. The layout is the same for every instruction set.
//
// Scales and offsets are kept apart from the codes, 16 rows of a group side by side, in the narrowest of three forms that
// holds every one of them exactly: half precision, small integers times one float for 256 columns (what the k-quants of
// GGUF are made of), or float.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base.h"

namespace minimemo {

constexpr int kTile = 16;     // rows
constexpr int kBlock = 32;    // columns that share one activation scale
constexpr int kSuper = 256;   // columns that share one factor of two-level scales
constexpr int kMaxRows = 64;  // activation rows of one pass of integers: their sums stay in the first-level cache

enum Kind : int32_t { kNone = 0, kFloat = 1, kHalf = 2, kTwoLevel = 3 };

struct Header {  // the first 64 bytes of a buffer; positions are from its beginning
  uint32_t magic;
  int32_t rows, columns, group, bits, zero, scale_kind, offset_kind;
  int64_t scales_at, offsets_at, bytes;
  int64_t reserved;
};
static_assert(sizeof(Header) == 64, "the header is part of the format");
constexpr uint32_t kMagic = 0x31574d4d;  // "MMW1"

INLINE Header header_of(const uint8_t* matrix) {
  Header h;
  __builtin_memcpy(&h, matrix, sizeof h);
  return h;
}

inline int64_t tiles_of(const Header& h) { return (int64_t(h.rows) + kTile - 1) / kTile; }
inline int64_t blocks_of(const Header& h) { return (int64_t(h.columns) + kBlock - 1) / kBlock; }
inline int64_t supers_of(const Header& h) { return (int64_t(h.columns) + kSuper - 1) / kSuper; }
inline int64_t block_bytes(const Header& h) { return int64_t(h.bits) * 64; }
inline int64_t codes_bytes(const Header& h) { return tiles_of(h) * blocks_of(h) * block_bytes(h); }

// Bytes of one tile's scales (or offsets).
inline int64_t param_bytes(const Header& h, int32_t kind) {
  const int64_t groups = blocks_of(h) * (kBlock / h.group);
  if (kind == kFloat) return groups * kTile * 4;
  if (kind == kHalf) return groups * kTile * 2;
  if (kind == kTwoLevel) return supers_of(h) * (kTile * 4 + (kSuper / h.group) * kTile);
  return 0;
}

// Fills in where scales and offsets lie, 64-byte aligned, and the size of the whole.
inline void lay_out(Header& h) {
  const auto aligned = [](int64_t n) { return (n + 63) / 64 * 64; };
  h.scales_at = int64_t(sizeof(Header)) + codes_bytes(h);
  h.offsets_at = h.scales_at + aligned(tiles_of(h) * param_bytes(h, h.scale_kind));
  h.bytes = h.offsets_at + aligned(tiles_of(h) * param_bytes(h, h.offset_kind));
}

// What activations are rounded to, each block of 32 relative to its largest, for a product.
enum class Numbers {
  kCoarse,  // 8-bit integers
  kFine,    // 14-bit ones
  kMany,    // of many rows: bfloat16, each by itself, where a variant has something quicker for that; else 8-bit integers
};
inline Numbers numbers_of(bool fine, int64_t rows) {
  return fine ? Numbers::kFine : rows > kFewRows ? Numbers::kMany : Numbers::kCoarse;
}

// Activations of n rows of one pass, rounded by a variant for itself. Block by block, so that one block of all rows is
// contiguous. Fine: as two planes of 7 bits where the machine multiplies bytes.
struct Activations {
  int n;
  int64_t blocks;
  bool fine;
  int8_t* bytes;     // (blocks, n, 32 or 2 x 32), or null: byte products
  int16_t* words;    // (blocks, n, 32), or null: 16-bit products
  uint16_t* halves;  // (n / 16, blocks, 16, 32) bfloat16, and nothing else, or null
  float* scales;     // (blocks, n)
  int32_t* sums;     // (blocks, 2, n): integers summed over 16 columns
};

// The part of a product that all tiles of one matrix share: (blocks, 32 / group, n).
struct GroupSums {
  const int32_t* zero;   // zero * sum
  const float* offset;   // scale * sum; null without offsets
};

struct Kernels {
  const char* name;
  int many_rows;                  // of a pass of bfloat16; 0 where many rows are rounded to 8-bit integers
  bool (*meets_bytes)(int bits);  // whether codes of so many bits are multiplied by Activations.bytes, else by words
  void (*quantize)(const float* x, int64_t columns, int first, int last, int64_t first_block, int64_t last_block,
                   const Activations& to);
  void (*dot)(const uint8_t* matrix, const Activations& x, const GroupSums& sums, int64_t first_tile, int64_t last_tile,
              float* out, int64_t stride, const float* bias);
  void (*expand)(const uint8_t* matrix, const int64_t* ids, int64_t first, int64_t count, float* out, int64_t stride);
  void (*expand_bfloat16)(const uint8_t* matrix, const int64_t* ids, int64_t first, int64_t count, uint16_t* out,
                          int64_t stride);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t columns, float* out);
  void (*gate)(const float* gate, const float* up, int kind, int64_t count, float* out);
  int64_t max_group;              // of multiply_group; the four functions that follow are in loops.h
  void (*multiply_group)(const float* matrix, int64_t group, float* x, int64_t columns);
  void (*round_symbols)(const float* components, const int32_t* places, int64_t count, float step, float rounding,
                        int16_t* out);
  void (*store_turned)(const float* keys, const float* values, const float* cosines, const float* sines, int64_t tokens,
                       int64_t dim, float* to_keys, float* to_values);
  void (*store_turned_bfloat16)(const float* keys, const float* values, const float* cosines, const float* sines,
                                int64_t tokens, int64_t dim, uint16_t* to_keys, uint16_t* to_values);
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();  // these three on x86-64
const Kernels* avx512_kernels();
const Kernels* amx_kernels();
bool may_use_tiles();  // asks the system

// Compilers that know AMX; others leave that variant out. Linux alone: elsewhere nobody was asked for the tiles.
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define MINIMEMO_AMX 1
#endif

// The kernels of variant 0 .. 3 (portable, avx2, avx512, amx), or null where this processor does not run them.
const Kernels* runnable(int variant);

}  // namespace minimemo
