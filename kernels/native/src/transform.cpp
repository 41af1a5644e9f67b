// Components rounded to symbols; symbols laid out for the inverse transform; the calls of both from Python.
#include "transform.h"

#include <algorithm>
#include <cstring>

#include "format.h"
#include "memory.h"
#include "threads.h"

namespace minimemo {
namespace {

inline int16_t byte_of(int16_t symbol, int16_t largest) {
  const int16_t low = symbol < -largest ? int16_t(-largest) : symbol;
  return low > largest ? largest : low;
}

// Four components of all tokens at a time.
void lay_quad(const InverseTransform& job, const Spread& spread, int64_t row, int largest) {
  const int64_t group = row / kComponents;
  int8_t* to = spread.bytes + group * job.tokens * kComponents + row % kComponents;
  int32_t* sums = spread.sums + group * job.tokens;
  static const int16_t none[kMaxTokens] = {};
  uint32_t quads[kMaxTokens] = {};
  for (int i = 0; i < 4; i++) {
    const int16_t* from = row + i < job.dense ? job.symbols + (row + i) * job.tokens : none;
    for (int64_t t = 0; t < job.tokens; t++) {
      const int16_t byte = byte_of(from[t], int16_t(largest));
      quads[t] |= uint32_t(uint8_t(byte)) << (8 * i);
      sums[t] += 128 * byte;
    }
  }
  for (int64_t t = 0; t < job.tokens; t++, to += kComponents) std::memcpy(to, &quads[t], 4);
}

// What bytes do not hold of row `row`, some symbols at a time, since most are zero.
template <typename Function>
inline void beyond_bytes(const InverseTransform& job, int64_t row, int largest, Function found) {
  constexpr int kAtATime = 32;
  const int16_t* from = job.symbols + row * job.tokens;
  const int16_t held = row < job.dense ? int16_t(largest) : 0;
  for (int64_t t = 0; t < job.tokens; t += kAtATime, from += kAtATime) {
    const int count = int(std::min<int64_t>(kAtATime, job.tokens - t));
    int16_t rest[kAtATime], any = 0;
    for (int i = 0; i < count; i++) any = int16_t(any | (rest[i] = int16_t(from[i] - byte_of(from[i], held))));
    if (any == 0) continue;
    for (int i = 0; i < count; i++)
      if (rest[i]) found(t + i, rest[i]);
  }
}

// Entries of rows with any, row after row. counts: of each row.
void list_entries(const InverseTransform& job, int largest, int threads, const int64_t* counts, Spread& spread) {
  int64_t count = 0;
  spread.actives = 0;
  for (int64_t row = 0; row < job.rows; row++)
    if (counts[row]) {
      spread.active[spread.actives++] = {row, count, count + counts[row]};
      count += counts[row];
    }
  constexpr int64_t kChunk = 64;
  for_each(Work::kLong, threads, (spread.actives + kChunk - 1) / kChunk, [&](int64_t chunk) {
    for (int64_t i = chunk * kChunk; i < std::min(spread.actives, (chunk + 1) * kChunk); i++) {
      Entry* to = spread.entries + spread.active[i].first;
      beyond_bytes(job, spread.active[i].row, largest,
                   [&](int64_t t, int16_t symbol) { *to++ = {uint32_t(t), float(symbol)}; });
    }
  });
}

Inverse inverse_of(int variant) {
#if defined(__x86_64__)
  if (variant == 1 && runnable(1)) return avx2_inverse();
#if defined(MINIMEMO_AMX)
  if (variant >= 3 && runnable(3)) return amx_inverse();
#endif
  if (variant >= 2 && runnable(2)) return avx512_inverse();
#endif
  return {};
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// See loops.h.
EXPORT void minimemo_round_symbols(int variant, const float* components, const int32_t* places, int64_t count,
                                   float step, float rounding, int16_t* out, int threads) {
  constexpr int64_t kChunk = 1 << 14;
  const auto rounded = runnable(variant)->round_symbols;
  for_each(Work::kLong, threads, (count + kChunk - 1) / kChunk, [&](int64_t chunk) {
    const int64_t first = chunk * kChunk;
    rounded(components, places + first, std::min(count - first, kChunk), step, rounding, out + first);
  });
}

// Whether minimemo_inverse_transform runs in this variant.
EXPORT int minimemo_inverts(int variant) { return inverse_of(variant).piece != nullptr; }

// Returns 0, or 1 without memory. Every pointer and shape is the caller's word, but for the size of the struct.
EXPORT int minimemo_inverse_transform(int variant, const InverseTransform* job, int64_t bytes, int threads) {
  if (bytes != int64_t(sizeof *job)) return 1;
  const Inverse inverse = inverse_of(variant);
  Spread spread;
  spread.groups = (job->dense + kComponents - 1) / kComponents;
  const int64_t cells = spread.groups * job->tokens, chunks = (job->rows + kComponents - 1) / kComponents;
  int64_t entries = 0;
  int64_t* counts = nullptr;
  const auto cut = [&](uint8_t* memory) {
    Cutter cutter{memory};
    spread.bytes = cutter.take<int8_t>((cells + kPadding) * kComponents);
    spread.sums = cutter.take<int32_t>(cells);
    spread.active = cutter.take<Active>(job->rows);
    counts = cutter.take<int64_t>(job->rows);
    return cutter.used;
  };
  const Memory memory = allocate(cut(nullptr));
  if (!memory) return 1;
  cut(memory.get());
  std::memset(spread.sums, 0, size_t(cells) * sizeof(int32_t));
  for_each(Work::kLong, threads, chunks, [&](int64_t chunk) {
    const int64_t row = chunk * kComponents, runs = (job->dense - row + kLaidOut - 1) / kLaidOut;
    const int64_t end = row + std::min<int64_t>(kComponents, runs * kLaidOut);
    for (int64_t at = row; at < end; at += 4) lay_quad(*job, spread, at, inverse.largest);
    for (int64_t at = row; at < std::min(job->rows, row + kComponents); at++) {
      counts[at] = 0;
      beyond_bytes(*job, at, inverse.largest, [&](int64_t, int16_t) { counts[at]++; });
    }
  });
  for (int64_t row = 0; row < job->rows; row++) entries += counts[row];
  const Memory listed = allocate(size_t(entries) * sizeof(Entry));
  if (!listed) return 1;
  spread.entries = reinterpret_cast<Entry*>(listed.get());
  list_entries(*job, inverse.largest, threads, counts, spread);
  for_each(Work::kLong, threads, job->columns / kColumns, [&](int64_t tile) { inverse.piece(*job, spread, tile); });
  return 0;
}
