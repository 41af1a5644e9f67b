// Symbols laid out for the inverse transform, and its call from Python.
#include "transform.h"

#include <algorithm>
#include <cstring>

#include "format.h"
#include "memory.h"
#include "threads.h"

namespace minimemo {
namespace {

inline int8_t byte_of(int16_t symbol, int largest) {
  return int8_t(symbol > largest ? largest : symbol < -largest ? -largest : symbol);
}

// Four components of all tokens at a time.
void lay_quad(const InverseTransform& job, const Spread& spread, int64_t row, int largest) {
  const int64_t group = row / kComponents;
  int8_t* to = spread.bytes + group * job.tokens * kComponents + row % kComponents;
  int32_t* sums = spread.sums + group * job.tokens;
  static const int16_t none[kMaxTokens] = {};
  const int16_t* from[4];
  for (int i = 0; i < 4; i++) from[i] = row + i < job.dense ? job.symbols + (row + i) * job.tokens : none;
  for (int64_t t = 0; t < job.tokens; t++, to += kComponents) {
    int sum = 0;
    int8_t four[4];
    for (int i = 0; i < 4; i++) sum += four[i] = byte_of(from[i][t], largest);
    std::memcpy(to, four, 4);
    sums[t] += 128 * sum;
  }
}

// What bytes do not hold of row `row`, some symbols at a time, since most are zero.
template <typename Function>
inline void beyond_bytes(const InverseTransform& job, int64_t row, int largest, Function found) {
  constexpr int kAtATime = 32;
  const int16_t* from = job.symbols + row * job.tokens;
  const int held = row < job.dense ? largest : 0;
  for (int64_t t = 0; t < job.tokens; t += kAtATime, from += kAtATime) {
    const int count = int(std::min<int64_t>(kAtATime, job.tokens - t));
    int16_t rest[kAtATime], any = 0;
    for (int i = 0; i < count; i++) any = int16_t(any | (rest[i] = int16_t(from[i] - byte_of(from[i], held))));
    if (any == 0) continue;
    for (int i = 0; i < count; i++)
      if (rest[i]) found(t + i, rest[i]);
  }
}

int64_t count_entries(const InverseTransform& job, int largest) {
  int64_t count = 0;
  for (int64_t row = 0; row < job.rows; row++) beyond_bytes(job, row, largest, [&](int64_t, int16_t) { count++; });
  return count;
}

void list_entries(const InverseTransform& job, int largest, Spread& spread) {
  int64_t count = 0;
  spread.actives = 0;
  for (int64_t row = 0; row < job.rows; row++) {
    const int64_t first = count;
    beyond_bytes(job, row, largest, [&](int64_t t, int16_t symbol) {
      spread.entries[count++] = {uint32_t(t), float(symbol)};
    });
    if (count > first) spread.active[spread.actives++] = {row, first, count};
  }
}

Inverse inverse_of(int variant) {
#if defined(__x86_64__)
  if (variant == 1 && runnable(1)) return avx2_inverse();
  if (variant >= 2 && runnable(2)) return avx512_inverse();
#endif
  return {};
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// Whether minimemo_inverse_transform runs in this variant.
EXPORT int minimemo_inverts(int variant) { return inverse_of(variant).piece != nullptr; }

// Returns 0, or 1 without memory. Every pointer and shape is the caller's word, but for the size of the struct.
EXPORT int minimemo_inverse_transform(int variant, const InverseTransform* job, int64_t bytes, int threads) {
  if (bytes != int64_t(sizeof *job)) return 1;
  const Inverse inverse = inverse_of(variant);
  Spread spread;
  spread.groups = (job->dense + kComponents - 1) / kComponents;
  const int64_t cells = spread.groups * job->tokens, entries = count_entries(*job, inverse.largest);
  const auto cut = [&](uint8_t* memory) {
    Cutter cutter{memory};
    spread.bytes = cutter.take<int8_t>(cells * kComponents);
    spread.sums = cutter.take<int32_t>(cells);
    spread.active = cutter.take<Active>(job->rows);
    spread.entries = cutter.take<Entry>(entries);
    return cutter.used;
  };
  const Memory memory = allocate(cut(nullptr));
  if (!memory) return 1;
  cut(memory.get());
  std::memset(spread.sums, 0, size_t(cells) * sizeof(int32_t));
  for_each(Work::kLong, threads, spread.groups, [&](int64_t group) {
    const int64_t row = group * kComponents, runs = (job->dense - row + 4 * kRun - 1) / (4 * kRun);
    const int64_t end = row + std::min<int64_t>(kComponents, runs * 4 * kRun);
    for (int64_t at = row; at < end; at += 4) lay_quad(*job, spread, at, inverse.largest);
  });
  list_entries(*job, inverse.largest, spread);
  for_each(Work::kLong, threads, job->columns / kColumns, [&](int64_t tile) { inverse.piece(*job, spread, tile); });
  return 0;
}
