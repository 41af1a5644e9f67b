// Entropy coding by ranges of an asymmetric numeral system (Duda, arXiv 1311.2540), several states in turn (Giesen, arXiv
// 1402.3392), with tables that reader and writer know; kernels/ranges.py has the format and the same in numpy.
// Streams come from strangers: nothing is read or written past what the lengths say, whatever the bytes.
#include <cstring>

#include "base.h"

namespace minimemo {
namespace {

constexpr int kLanes = 16, kBits = 12;      // states; a table's frequencies add up to 2^kBits
constexpr int kSlots = 1 << kBits, kCodes = 128;
constexpr uint32_t kLeast = 1u << 16;       // a state has 17 to 32 bits between symbols

uint32_t two(const uint8_t* p) { return uint32_t(p[0]) | uint32_t(p[1]) << 8; }
void put_two(uint8_t* p, uint32_t number) {
  p[0] = uint8_t(number);
  p[1] = uint8_t(number >> 8);
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// codes (n,): of each symbol, below kCodes. tables, counts: of each of `runs` runs of symbols the table and how many
// there are. frequencies, below: (tables, kCodes). out has room for 2 n + 4 kLanes bytes and is filled from its end.
// Returns how many were written, -1 where a code has no frequency.
EXPORT int64_t minimemo_encode_ranges(const uint8_t* codes, const int64_t* tables, const int64_t* counts, int64_t runs,
                                      const uint16_t* frequencies, const uint16_t* below, uint8_t* out, int64_t room) {
  uint32_t states[kLanes];
  for (uint32_t& state : states) state = kLeast;
  uint8_t* at = out + room;
  int64_t symbol = 0;
  for (int64_t run = 0; run < runs; run++) symbol += counts[run];
  for (int64_t run = runs - 1; run >= 0; run--) {
    const uint16_t *frequency = frequencies + tables[run] * kCodes, *first = below + tables[run] * kCodes;
    for (int64_t left = counts[run]; left > 0; left--) {
      const uint8_t code = codes[--symbol];
      if (code >= kCodes || frequency[code] == 0) return -1;
      const uint32_t size = frequency[code];
      uint32_t& state = states[symbol % kLanes];
      if (state >> (32 - kBits) >= size) {
        put_two(at -= 2, state & 0xffff);
        state >>= 16;
      }
      state = (state / size << kBits) + state % size + first[code];
    }
  }
  for (int lane = kLanes - 1; lane >= 0; lane--) {
    put_two(at -= 2, states[lane] >> 16);
    put_two(at -= 2, states[lane] & 0xffff);
  }
  return out + room - at;
}

// The inverse. code_of: (tables, kSlots), of each slot the code. Returns 0, or 1 where the stream is not one of so many
// symbols, all of it.
EXPORT int minimemo_decode_ranges(const uint8_t* stream, int64_t bytes, const int64_t* tables, const int64_t* counts,
                                  int64_t runs, const uint16_t* frequencies, const uint16_t* below,
                                  const uint8_t* code_of, uint8_t* codes) {
  if (bytes < 4 * kLanes) return 1;
  uint32_t states[kLanes];
  for (int lane = 0; lane < kLanes; lane++) states[lane] = two(stream + 4 * lane) | two(stream + 4 * lane + 2) << 16;
  const uint8_t *at = stream + 4 * kLanes, *end = stream + bytes;
  int64_t symbol = 0;
  for (int64_t run = 0; run < runs; run++) {
    const uint16_t *frequency = frequencies + tables[run] * kCodes, *first = below + tables[run] * kCodes;
    const uint8_t* of = code_of + tables[run] * kSlots;
    for (const int64_t stop = symbol + counts[run]; symbol < stop; symbol++) {
      uint32_t& state = states[symbol % kLanes];
      const uint32_t slot = state & (kSlots - 1);
      const uint8_t code = of[slot];
      codes[symbol] = code;
      state = frequency[code] * (state >> kBits) + slot - first[code];
      if (state < kLeast) {
        if (end - at < 2) return 1;
        state = state << 16 | two(at);
        at += 2;
      }
    }
  }
  for (const uint32_t state : states)
    if (state != kLeast) return 1;
  return at == end ? 0 : 1;
}
