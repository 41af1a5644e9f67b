// The inverse of a transform codec: components of a block of tokens times a basis.
//
// Loud components, dense in nonzero symbols, meet the basis as bytes: the basis is rounded to 8 bits, with a scale for
// each column over kComponents rows, which adds errors of a few thousandths of what is coded. Quiet components are
// mostly zero: only their nonzero symbols are looked at, times the basis in half precision.
#pragma once

#include <cstdint>

namespace minimemo {

constexpr int kComponents = 256;  // rows of a basis that share a scale
constexpr int kQuads = kComponents / 4;
constexpr int kLaidOut = 64;      // components that a piece may take at once: whole runs of so many are laid out
constexpr int kColumns = 32;      // of one piece of work
constexpr int kMaxTokens = 256;
constexpr int kPadding = 32;

struct InverseTransform {
  const int16_t* symbols;  // (rows, tokens)
  int64_t rows, dense;     // the first `dense` rows are loud
  int64_t tokens;          // at most kMaxTokens
  int64_t columns;         // C, a multiple of kColumns
  int64_t dim;             // of a head, a multiple of kColumns
  float step;
  const uint8_t* packed;   // (C / kColumns, groups of kComponents, kQuads, kColumns, 4): a code of 8 bits + 128
  const float* scales;     // (C / kColumns, groups, kColumns)
  const uint16_t* basis;   // (rows, C) half precision
  const float* mean;       // (C)
  const float* scale;      // (C / dim): out = (symbols * step @ basis + mean) * scale
  float* out;              // (C / dim, tokens, dim), heads out_head numbers apart
  int64_t out_head;
};

// Symbols laid out for a product: what all pieces share.
struct Entry {             // a nonzero symbol, or what is left of one beyond a byte's share
  uint32_t token;
  float symbol;
};
struct Active {            // a row of the basis that has entries
  int64_t row, first, last;
};
struct Spread {
  int64_t groups, actives;
  int8_t* bytes;           // (groups, tokens, kComponents), and kPadding tokens that may be read
  int32_t* sums;           // (groups, tokens): 128 * sum of the bytes
  Active* active;
  Entry* entries;
};

// Quads of a group that have loud components.
inline int quads_of(const InverseTransform& job, int64_t group) {
  const int64_t left = job.dense - group * kComponents;
  return int(left < kComponents ? (left + 3) / 4 : kQuads);
}

struct Inverse {
  void (*piece)(const InverseTransform& job, const Spread& spread, int64_t tile);
  int largest;  // of a symbol as a byte
};
Inverse avx2_inverse();  // these on x86-64
Inverse avx512_inverse();
Inverse amx_inverse();

}  // namespace minimemo
