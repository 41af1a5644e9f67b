// Entropy coding by ranges of an asymmetric numeral system (Duda, arXiv 1311.2540), several states in turn (Giesen, arXiv
// 1402.3392), with tables that reader and writer know; kernels/ranges.py has the format and the same in numpy.
#pragma once

#include <cstdint>

namespace minimemo {

constexpr int kLanes = 16, kBits = 12;      // states; a table's frequencies add up to 2^kBits
constexpr int kSlots = 1 << kBits, kCodes = 128, kBeside = kCodes - 1;  // the last: of a symbol that its table lacks
constexpr uint32_t kLeast = 1u << 16;       // a state has 17 to 32 bits between symbols

// Of each slot of a table: its code's frequency, how far from the first of the code's slots it lies, the code.
INLINE uint32_t frequency_of(uint32_t slot) { return slot >> kBits & (2 * kSlots - 1); }
INLINE uint32_t within_of(uint32_t slot) { return slot & (kSlots - 1); }
INLINE uint32_t code_of(uint32_t slot) { return slot >> (2 * kBits + 1); }

// What a vector of symbols takes, as far as it can: it stops before one of which a symbol stands beside, and, decoding,
// where what is left of the stream might not do. Both return how many vectors of kLanes symbols they did.
struct Decoding {
  uint32_t* states;       // (kLanes)
  const uint8_t *at, *end;
};
struct Encoding {
  uint32_t* states;
  uint8_t* at;            // of what is written already, from the end of the stream on
};

#if defined(__x86_64__)
// slots: of their table; symbol i of them goes to out[places[i]].
int64_t decode_avx512(Decoding& stream, const uint32_t* slots, int64_t vectors, const int32_t* places, int16_t* out);
// shares: of their table, each code's frequency and, 16 bits up, the sum of those before; symbols: the end of them.
int64_t encode_avx512(Encoding& stream, const uint32_t* shares, int64_t vectors, const int16_t* symbols);
#else
inline int64_t decode_avx512(Decoding&, const uint32_t*, int64_t, const int32_t*, int16_t*) { return 0; }
inline int64_t encode_avx512(Encoding&, const uint32_t*, int64_t, const int16_t*) { return 0; }
#endif

}  // namespace minimemo
