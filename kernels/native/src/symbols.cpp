// Streams of a transform codec's symbols -> symbols; minimemo/memory/packing.py has the format and the same in numpy.
// Streams come from strangers: nothing is read or written past what the lengths say, whatever the bytes.
#include <cstring>

#include "base.h"

namespace minimemo {
namespace {

enum Fault { kFine, kDigits, kGaps, kFew, kMany, kRange, kMarks };

constexpr int kLarge = 255, kLargest = 32767;
constexpr int64_t kCodeLimit = 65534;  // a gap's symbol and its sign

int32_t little_endian(const uint8_t* p) {
  return int32_t(uint32_t(p[0]) | uint32_t(p[1]) << 8 | uint32_t(p[2]) << 16 | uint32_t(p[3]) << 24);
}

// Whole numbers >= 0: a byte each, the large ones besides.
struct Numbers {
  const uint8_t *small, *end, *large;
  bool few = false;

  Fault check(int64_t large_bytes) const {
    int64_t marks = 0;
    for (const uint8_t* p = small; p < end; p++) marks += *p == kLarge;
    if (large_bytes != 4 * marks) return kMarks;
    for (int64_t i = 0; i < marks; i++) {
      const int32_t number = little_endian(large + 4 * i);
      if (number < 0 || number >= kCodeLimit) return kRange;
    }
    return kFine;
  }

  int32_t next() {
    if (small == end) {
      few = true;
      return 0;
    }
    const uint8_t number = *small++;
    if (number != kLarge) return number;
    large += 4;
    return little_endian(large - 4);
  }
};

// The digits of a byte, and which of them are the largest, beyond which a remainder says how far.
struct Digits {
  int packed, reach, codes;
  int16_t of[256][8] = {};
  uint8_t at_end[256] = {};

  Digits(int packed, int reach) : packed(packed), reach(reach), codes(1) {
    for (int i = 0; i < packed; i++) codes *= 2 * reach + 1;
    for (int code = 0; code < codes; code++)
      for (int i = 0, rest = code; i < packed; i++, rest /= 2 * reach + 1) {
        of[code][i] = int16_t(rest % (2 * reach + 1) - reach);
        if (of[code][i] == reach || of[code][i] == -reach) at_end[code] |= uint8_t(1 << i);
      }
  }
};

const Digits* digits_of(int packed) {
  static const Digits one(1, 127), two(2, 7), three(3, 2), five(5, 1);
  return packed == 1 ? &one : packed == 2 ? &two : packed == 3 ? &three : packed == 5 ? &five : nullptr;
}

Fault unpack_digits(const Digits& digits, const uint8_t* stream, int64_t bytes, int64_t rows, int64_t tokens,
                    Numbers& rest, int16_t* out) {
  const int packed = digits.packed;
  if (bytes != rows * ((tokens + packed - 1) / packed)) return kDigits;
  for (int64_t row = 0; row < rows; row++, out += tokens)
    for (int64_t t = 0; t < tokens; t += packed) {
      const uint8_t code = *stream++;
      if (code >= digits.codes) return kDigits;
      const int64_t left = tokens - t;
      const int count = left < packed ? int(left) : packed;
      std::memcpy(out + t, digits.of[code], size_t(left < 8 ? count : 8) * sizeof(int16_t));  // what is too much is overwritten
      unsigned at_end = digits.at_end[code] & ((1u << count) - 1);
      for (; at_end; at_end &= at_end - 1) {
        int16_t& symbol = out[t + __builtin_ctz(at_end)];
        const int32_t beyond = rest.next();
        if (beyond > kLargest - digits.reach) return kRange;
        symbol = int16_t(symbol < 0 ? symbol - beyond : symbol + beyond);
      }
    }
  return kFine;
}

Fault unpack_gaps(const uint8_t* stream, int64_t bytes, int64_t size, Numbers& rest, int16_t* out) {
  std::memset(out, 0, size_t(size) * sizeof(int16_t));
  int64_t left = rest.next();
  left += int64_t(kLarge) * rest.next();
  if (rest.few || left > rest.end - rest.small) return kFew;
  int64_t at = -1;
  for (const uint8_t* end = stream + bytes; stream < end; stream++) {
    if (*stream == kLarge) {
      at += kLarge;
      continue;
    }
    at += *stream + 1;
    if (left-- == 0 || at >= size) return kGaps;
    const int32_t code = rest.next(), symbol = code / 2 + 1;
    out[at] = int16_t(code % 2 ? -symbol : symbol);
  }
  return left == 0 ? kFine : kGaps;
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// streams, lengths: those of `count` bands, then the remainders and the large numbers. rows, widths, packed: of each band
// its rows, the symbols of a row, whose first begins a byte, and how many a byte holds, 0 where gaps are stored. out: one
// band after the other. Returns a Fault.
EXPORT int minimemo_unpack_symbols(const uint8_t* const* streams, const int64_t* lengths, const int64_t* rows,
                                   const int64_t* widths, const int64_t* packed, int64_t count, int16_t* out) {
  Numbers rest{streams[count], streams[count] + lengths[count], streams[count + 1]};
  if (const Fault fault = rest.check(lengths[count + 1])) return fault;
  for (int64_t band = 0; band < count; out += rows[band] * widths[band], band++) {
    const Digits* digits = digits_of(int(packed[band]));
    const Fault fault = digits ? unpack_digits(*digits, streams[band], lengths[band], rows[band], widths[band], rest, out)
                               : unpack_gaps(streams[band], lengths[band], rows[band] * widths[band], rest, out);
    if (rest.few) return kFew;
    if (fault) return fault;
  }
  return rest.small == rest.end ? kFine : kMany;
}
