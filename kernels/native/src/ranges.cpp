// Symbols into ranges and back, one by one where they do not go by vectors.
// Streams come from strangers: nothing is read or written past what the lengths say, whatever the bytes.
#include "base.h"
//
#include "format.h"
#include "ranges.h"
#include "threads.h"

namespace minimemo {
namespace {

constexpr int kLargest = 32767;

enum Fault { kFine, kDamaged, kCount, kRange };

// Symbols one after the other that share a table, without their lowest `shift` bits.
struct Run {
  int64_t table, shift, length;
};

uint32_t two(const uint8_t* p) { return uint32_t(p[0]) | uint32_t(p[1]) << 8; }
void put_two(uint8_t* p, uint32_t number) {
  p[0] = uint8_t(number);
  p[1] = uint8_t(number >> 8);
}

// 0, 1, -1, 2, -2 ... are 0, 1, 2, 3, 4 ...
int code_of_symbol(int symbol) {
  const int size = symbol < 0 ? -symbol : symbol;
  return size < kCodes / 2 ? 2 * size - (symbol > 0) : kBeside;
}
int symbol_of_code(int code) { return code % 2 ? code / 2 + 1 : -(code / 2); }

// Bit `at` of bytes, each byte's highest first.
int bit_of(const uint8_t* bytes, int64_t at) { return bytes[at / 8] >> (7 - at % 8) & 1; }

bool by_vectors(int variant) {
#if defined(__x86_64__)
  return variant >= 2 && runnable(2);
#else
  return false;
#endif
}

// One array of symbols (n,), from -kLargest on, in `count` runs; shares: (tables, kCodes). out: room for 2 n + 4 kLanes
// bytes, filled from its end; low: of shift * length bits, all 0; beside: for n, of which the last `besides` are written.
// written: how many bytes of out were, -1 where a table lacks a symbol and kBeside.
struct Packing {
  const int16_t* symbols;
  const Run* runs;
  int64_t count;
  const uint32_t* shares;
  uint8_t* out;
  int64_t room;
  uint8_t* low;
  int16_t* beside;
  int64_t besides, written;
};

int64_t pack(Packing& job, bool vectors) {
  uint32_t states[kLanes];
  for (uint32_t& state : states) state = kLeast;
  Encoding stream{states, job.out + job.room};
  int64_t symbol = 0, bit = 0;
  for (const Run* run = job.runs; run < job.runs + job.count; run++) symbol += run->length, bit += run->shift * run->length;
  int16_t* beside = job.beside + symbol;
  job.besides = 0;
  for (const Run* run = job.runs + job.count - 1; run >= job.runs; run--) {
    const uint32_t* shares = job.shares + run->table * kCodes;
    for (const int64_t first = symbol - run->length; symbol > first; symbol--) {
      if (vectors && run->shift == 0 && symbol % kLanes == 0)
        symbol -= kLanes * encode_avx512(stream, shares, (symbol - first) / kLanes, job.symbols + symbol);
      if (symbol == first) break;
      int upper = job.symbols[symbol - 1];
      if (run->shift) {
        upper += 1 << (run->shift - 1);
        bit -= run->shift;
        for (int64_t i = 0; i < run->shift; i++)
          job.low[(bit + i) / 8] |= uint8_t((upper >> i & 1) << (7 - (bit + i) % 8));
        upper >>= run->shift;
      }
      int code = code_of_symbol(upper);
      if (code == kBeside || (shares[code] & 0xffff) == 0) {
        code = kBeside;
        put_two(reinterpret_cast<uint8_t*>(--beside), uint32_t(upper));
        job.besides++;
      }
      const uint32_t size = shares[code] & 0xffff;
      if (size == 0) return -1;
      uint32_t& state = states[(symbol - 1) % kLanes];
      if (state >> (32 - kBits) >= size) {
        put_two(stream.at -= 2, state & 0xffff);
        state >>= 16;
      }
      state = (state / size << kBits) + state % size + (shares[code] >> 16);
    }
  }
  for (int lane = kLanes - 1; lane >= 0; lane--) {
    put_two(stream.at -= 2, states[lane] >> 16);
    put_two(stream.at -= 2, states[lane] & 0xffff);
  }
  return job.out + job.room - stream.at;
}

// The inverse. slots: (tables, kSlots); low: of as many bytes as the runs ask for. Symbol i goes to out[places[i]].
struct Unpacking {
  const uint8_t* bytes;
  int64_t length;
  const uint8_t *low, *beside;
  int64_t besides;  // bytes
  const Run* runs;
  int64_t count;
  const uint32_t* slots;
  const int32_t* places;
  int16_t* out;
  int64_t fault;    // a Fault
};

Fault unpack(const Unpacking& job, bool vectors) {
  if (job.length < 4 * kLanes) return kDamaged;
  uint32_t states[kLanes];
  for (int lane = 0; lane < kLanes; lane++)
    states[lane] = two(job.bytes + 4 * lane) | two(job.bytes + 4 * lane + 2) << 16;
  Decoding stream{states, job.bytes + 4 * kLanes, job.bytes + job.length};
  const uint8_t *beside = job.beside, *beside_end = beside + job.besides;
  int64_t symbol = 0, bit = 0;
  for (const Run* run = job.runs; run < job.runs + job.count; run++) {
    const uint32_t* slots = job.slots + run->table * kSlots;
    for (const int64_t stop = symbol + run->length; symbol < stop; symbol++) {
      if (vectors && run->shift == 0 && symbol % kLanes == 0)
        symbol += kLanes * decode_avx512(stream, slots, (stop - symbol) / kLanes, job.places + symbol, job.out);
      if (symbol == stop) break;
      uint32_t& state = states[symbol % kLanes];
      const uint32_t slot = slots[state & (kSlots - 1)];
      state = frequency_of(slot) * (state >> kBits) + within_of(slot);
      if (state < kLeast) {
        if (stream.end - stream.at < 2) return kDamaged;
        state = state << 16 | two(stream.at);
        stream.at += 2;
      }
      const int code = int(code_of(slot));
      int whole = symbol_of_code(code);
      if (code == kBeside) {
        if (beside_end - beside < 2) return kCount;
        whole = int16_t(two(beside));
        beside += 2;
      }
      if (run->shift) {
        whole = whole * (1 << run->shift) - (1 << (run->shift - 1));
        for (int64_t i = 0; i < run->shift; i++) whole += bit_of(job.low, bit++) << i;
      }
      if (whole < -kLargest || whole > kLargest) return kRange;
      job.out[job.places[symbol]] = int16_t(whole);
    }
  }
  for (const uint32_t state : states)
    if (state != kLeast) return kDamaged;
  return stream.at != stream.end ? kDamaged : beside != beside_end ? kCount : kFine;
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

EXPORT void minimemo_pack_ranges(int variant, Packing* jobs, int64_t count, int threads) {
  const bool vectors = by_vectors(variant);
  for_each(Work::kLong, threads, count, [&](int64_t i) { jobs[i].written = pack(jobs[i], vectors); });
}

EXPORT void minimemo_unpack_ranges(int variant, Unpacking* jobs, int64_t count, int threads) {
  const bool vectors = by_vectors(variant);
  for_each(Work::kLong, threads, count, [&](int64_t i) { jobs[i].fault = unpack(jobs[i], vectors); });
}
