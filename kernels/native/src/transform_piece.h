// One piece of the inverse transform: kColumns columns of all tokens. Included after a simd header and add_group().
#pragma once

#include "transform.h"

namespace minimemo {
namespace {

constexpr int64_t kAhead = 16;  // rows
constexpr int kVectors = kColumns / kLanes;

void run_piece(const InverseTransform& job, const Spread& spread, int64_t tile) {
  alignas(64) float c[kMaxTokens * kColumns];
  for (int64_t i = 0; i < job.tokens * kColumns; i += kLanes) store(c + i, Floats{});
  for (int64_t group = 0; group < spread.groups; group++) add_group(job, spread, tile, group, c);
  const int64_t column = tile * kColumns;
  for (int64_t i = 0; i < spread.actives; i++) {
    const Active& active = spread.active[i];
    const uint16_t* from = job.basis + active.row * job.columns + column;
    // a row is one cache line far from the others
    if (i + kAhead < spread.actives) __builtin_prefetch(job.basis + spread.active[i + kAhead].row * job.columns + column);
    Floats row[kVectors];
    for (int v = 0; v < kVectors; v++) row[v] = widened(from + v * kLanes);
    const Entry *at = spread.entries + active.first, *end = spread.entries + active.last;
    for (; at < end; at++) {
      float* to = c + int64_t(at->token) * kColumns;
      const Floats symbol = splat(at->symbol);
      for (int v = 0; v < kVectors; v++, to += kLanes) store(to, fused_add(symbol, row[v], load_floats(to)));
    }
  }
  const Floats step = splat(job.step), scale = splat(job.scale[column / job.dim]);
  Floats mean[kVectors];
  for (int v = 0; v < kVectors; v++) mean[v] = load_floats(job.mean + column + v * kLanes);
  const float* from = c;
  float* out = job.out + column / job.dim * job.out_head + column % job.dim;
  for (int64_t t = 0; t < job.tokens; t++, out += job.dim)
    for (int v = 0; v < kVectors; v++, from += kLanes)
      store(out + v * kLanes, fused_add(load_floats(from), step, mean[v]) * scale);
}

}  // namespace
}  // namespace minimemo
