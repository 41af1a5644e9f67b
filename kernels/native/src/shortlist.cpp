// The largest outputs of a product with a matrix of many rows, a vocabulary: a coarse copy of it tells which tiles can
// hold them, and only those are computed as always. Search by quantized vectors and ranking again, as of nearest
// neighbours (arXiv 1702.08734).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "product.h"

namespace minimemo {
namespace {

// How many standard deviations of a coarse output's error a tile may lie below the largest one and still be computed. Of
// 1,344 tokens of text over 151,936 rows no coarse output was wrong by more than 8.
constexpr double kDeviations = 16;

constexpr int64_t kChunk = 64;  // tiles, or rows, that one thread takes at a time

float largest_of(const float* values, int64_t count) {
  float most[kTile];
  for (float& m : most) m = -INFINITY;
  for (int64_t at = 0; at + kTile <= count; at += kTile)
    for (int i = 0; i < kTile; i++) most[i] = values[at + i] > most[i] ? values[at + i] : most[i];
  for (int64_t i = count - count % kTile; i < count; i++) most[0] = values[i] > most[0] ? values[i] : most[0];
  return *std::max_element(most, most + kTile);
}

// A positive value to as many bits as half precision has; beyond its range to 11 significant ones.
float in_half_precision(float value) {
  if (value < 0x1p-14f) return (value + 0.5f) - 0.5f;  // to multiples of 2^-24
  const float much = value * 8193;                     // 2^13 + 1: to 11 significant bits
  return much - (much - value);
}

// One block of kBlock columns: halves of 16, each with the scale of its group. Reductions by lanes, which a compiler turns
// into vectors.
float coarsen_block(const int8_t* codes, const float* scales, const float* offsets, int group, int8_t* rounded,
                    float* step) {
  constexpr int kLanes = 8;
  float wide[kBlock], most[kLanes] = {}, lost[kLanes] = {};
  for (int c = 0; c < kBlock; c += 16) {
    const float scale = scales[c / group], offset = offsets ? offsets[c / group] : 0;
    for (int i = 0; i < 16; i++) wide[c + i] = float(codes[c + i]) * scale + offset;
  }
  for (int c = 0; c < kBlock; c += kLanes)
    for (int i = 0; i < kLanes; i++) most[i] = std::fabs(wide[c + i]) > most[i] ? std::fabs(wide[c + i]) : most[i];
  *step = in_half_precision(*std::max_element(most, most + kLanes) / 7.5f);  // 16 steps from the least to the largest
  const float inverse = *step > 0 ? 1 / *step : 0;
  for (int c = 0; c < kBlock; c += kLanes)
    for (int i = 0; i < kLanes; i++) {
      const float scaled = wide[c + i] * inverse, bounded = scaled > -8 ? scaled : -8;  // NaN becomes -8
      const float nearest = ((bounded < 7 ? bounded : 7) + 0x1.8p23f) - 0x1.8p23f;
      const float off = wide[c + i] - nearest * *step;
      rounded[c + i] = int8_t(nearest);
      lost[i] += off * off;
    }
  return std::accumulate(lost, lost + kLanes, 0.0f);
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// Codes (rows, columns), scales and offsets (rows, columns / group) -> codes of -8 .. 7 and one step for 32 columns, which
// half precision holds where it can. Returns the sum of the squares of what was lost.
EXPORT double minimemo_coarsen(const int8_t* codes, const float* scales, const float* offsets, int64_t rows,
                               int64_t columns, int group, int8_t* rounded, float* steps, int threads) {
  const int64_t blocks = columns / kBlock, groups = columns / group, per_block = kBlock / group;
  std::vector<double> lost(static_cast<size_t>(rows));
  for_each(Work::kLong, threads, (rows + kChunk - 1) / kChunk, [&](int64_t chunk) {
    for (int64_t row = chunk * kChunk; row < std::min((chunk + 1) * kChunk, rows); row++)
      for (int64_t b = 0; b < blocks; b++) {
        const int64_t group_at = row * groups + b * per_block, at = row * columns + b * kBlock;
        lost[size_t(row)] += coarsen_block(codes + at, scales + group_at, offsets ? offsets + group_at : nullptr, group,
                                           rounded + at, steps + row * blocks + b);
      }
  });
  return std::accumulate(lost.begin(), lost.end(), 0.0);
}

// out (n, rows) = x (n, columns) times the transpose of `exact`, where an output may be the largest of its row; the others
// are those of `coarse`, the same matrix rounded, whose elements are off by `noise` (root mean square). n <= 16 or so.
// Returns 0, or 1 without memory.
EXPORT int minimemo_shortlist(int variant, const uint8_t* coarse, const uint8_t* exact, float noise, const float* x,
                              int64_t n, float* out, int threads) {
  const Kernels& kernels = *runnable(variant);
  Product screen(kernels, &coarse, 1, Numbers::kCoarse, threads), ranking(kernels, &exact, 1, Numbers::kFine, threads);
  const Memory memory = allocate(std::max(screen.bytes(n), ranking.bytes(1)));
  if (!memory) return 1;
  const int64_t rows = screen.rows(), columns = screen.columns(), tiles = (rows + kTile - 1) / kTile;
  screen.run(memory.get(), Work::kShort, x, n, nullptr, out);
  std::vector<float> tops(static_cast<size_t>(tiles));
  std::vector<int64_t> chosen;
  for (int64_t row = 0; row < n; row++, x += columns, out += rows) {
    for_each(Work::kShort, threads, (tiles + kChunk - 1) / kChunk, [&](int64_t chunk) {
      for (int64_t tile = chunk * kChunk; tile < std::min((chunk + 1) * kChunk, tiles); tile++)
        tops[size_t(tile)] = largest_of(out + tile * kTile, std::min<int64_t>(kTile, rows - tile * kTile));
    });
    double square = 0;
    for (int64_t i = 0; i < columns; i++) square += double(x[i]) * x[i];
    const float least = largest_of(tops.data(), tiles) - float(kDeviations * noise * std::sqrt(square));
    chosen.clear();
    for (int64_t tile = 0; tile < tiles; tile++)
      if (tops[size_t(tile)] >= least) chosen.push_back(tile);
    ranking.bind(memory.get(), 1);
    ranking.quantize(Work::kShort, x);
    for_each(Work::kShort, threads, int64_t(chosen.size()),
             [&](int64_t i) { ranking.multiply_tiles(chosen[size_t(i)], chosen[size_t(i)] + 1, out); });
  }
  return 0;
}
