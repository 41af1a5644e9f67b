// Symbols laid out for the inverse transform, and its call from Python.
#include "transform.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "native.h"
#include "product.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace minimemo {
namespace {

inline int8_t byte_of(int16_t symbol) { return int8_t(symbol > 127 ? 127 : symbol < -127 ? -127 : symbol); }

// Four components of all tokens at a time.
void lay_quad(const InverseTransform& job, const Spread& spread, int64_t row) {
  const int64_t group = row / kComponents;
  int8_t* to = spread.bytes + group * job.tokens * kComponents + row % kComponents;
  int32_t* sums = spread.sums + group * job.tokens;
  static const int16_t none[kMaxTokens] = {};
  const int16_t* from[4];
  for (int i = 0; i < 4; i++) from[i] = row + i < job.dense ? job.symbols + (row + i) * job.tokens : none;
  for (int64_t t = 0; t < job.tokens; t++, to += kComponents) {
    int sum = 0;
    int8_t four[4];
    for (int i = 0; i < 4; i++) sum += four[i] = byte_of(from[i][t]);
    std::memcpy(to, four, 4);
    sums[t] += 128 * sum;
  }
}

// What bytes do not hold of row `row`, four symbols at a time, since most are zero.
template <typename Function>
inline void beyond_bytes(const InverseTransform& job, int64_t row, Function found) {
  const int16_t* from = job.symbols + row * job.tokens;
  const bool dense = row < job.dense;
  for (int64_t t = 0; t < job.tokens; t += 4) {
    int16_t four[4] = {};
    std::memcpy(four, from + t, size_t(std::min<int64_t>(4, job.tokens - t)) * sizeof(int16_t));
    if (dense)
      for (int16_t& symbol : four) symbol = int16_t(symbol - byte_of(symbol));
    uint64_t any;
    std::memcpy(&any, four, sizeof any);
    if (any == 0) continue;
    for (int i = 0; i < 4; i++)
      if (four[i]) found(t + i, four[i]);
  }
}

int64_t count_entries(const InverseTransform& job) {
  int64_t count = 0;
  for (int64_t row = 0; row < job.rows; row++) beyond_bytes(job, row, [&](int64_t, int16_t) { count++; });
  return count;
}

void list_entries(const InverseTransform& job, Spread& spread) {
  int64_t count = 0;
  spread.actives = 0;
  for (int64_t row = 0; row < job.rows; row++) {
    const int64_t first = count;
    beyond_bytes(job, row, [&](int64_t t, int16_t symbol) { spread.entries[count++] = {uint32_t(t), float(symbol)}; });
    if (count > first) spread.active[spread.actives++] = {row, first, count};
  }
}

InversePiece piece_of(int variant) { return variant == 2 && runnable(2) ? avx512_inverse() : nullptr; }

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// Whether minimemo_inverse_transform runs in this variant.
EXPORT int minimemo_inverts(int variant) { return piece_of(variant) != nullptr; }

// Returns 0, or 1 without memory. Every pointer and shape is the caller's word, but for the size of the struct.
EXPORT int minimemo_inverse_transform(int variant, const InverseTransform* job, int64_t bytes, int threads) {
  if (bytes != int64_t(sizeof *job)) return 1;
  const auto aligned = [](int64_t n) { return (n + 63) / 64 * 64; };
  Spread spread;
  spread.groups = (job->dense + kComponents - 1) / kComponents;
  const int64_t laid = aligned(spread.groups * job->tokens * kComponents);
  const int64_t sums = aligned(spread.groups * job->tokens * int64_t(sizeof(int32_t)));
  const int64_t active = aligned(job->rows * int64_t(sizeof(Active)));
  const int64_t entries = count_entries(*job) * int64_t(sizeof(Entry));
  const Memory memory = allocate(laid + sums + active + entries);
  if (!memory) return 1;
  spread.bytes = reinterpret_cast<int8_t*>(memory.get());
  spread.sums = reinterpret_cast<int32_t*>(spread.bytes + laid);
  spread.active = reinterpret_cast<Active*>(spread.bytes + laid + sums);
  spread.entries = reinterpret_cast<Entry*>(spread.bytes + laid + sums + active);
  std::memset(spread.sums, 0, size_t(sums));
  for (int64_t row = 0; row < job->dense; row += 4) lay_quad(*job, spread, row);
  list_entries(*job, spread);
  const InversePiece piece = piece_of(variant);
  for_each(Work::kLong, threads, job->columns / kColumns, [&](int64_t tile) { piece(*job, spread, tile); });
  return 0;
}
