// Attention, written once over the operations of simd_*.h. Flash style (arXiv 2205.14135): keys and values are taken in
// blocks; a block is laid out anew for the multiplications once and then serves all query rows of its kv head, so that
// heads which share it (arXiv 2305.13245) read it once. Softmax is computed in float32, online (arXiv 1805.02867).
//
// Both products are C (rows, columns) += A (rows, depth) B (depth, columns): for the scores, columns are keys and depth is
// the head dim; for the output, columns are dims and depth is keys. B lies in panels of kColumns vectors, (depth, panel).
// A lane holds one float, or two neighbouring bfloat16 along the depth where the machine multiplies those.
#pragma once

#include <cstring>

#include "attention.h"
#include "vector_math.h"

namespace minimemo {
namespace {

constexpr int kPer = kPairs ? 2 : 1;              // numbers along the depth in a lane
constexpr int kPanel = kColumnVectors * kLanes;   // columns of a panel
static_assert(kKeyBlock % (2 * kLanes) == 0 && 64 % kLanes == 0, "blocks are whole panels, padded widths whole vectors");

struct Keep {  // what becomes of C before the product is added: row r times factors[r], or nothing at all
  const float* factors;
};

// What the next block will read, fetched while this one is multiplied: with few rows, laying out a block waits for
// memory and multiplying it does not, and only together do they reach the memory's speed.
struct Ahead {
  const char* at;
  int64_t lines;

  INLINE void fetch() {
    if (lines-- <= 0) return;
    __builtin_prefetch(at, 0, 2);
    at += 64;
  }
};

template <int kRows, int kVectors>
INLINE void multiply_tile(const float* a, int64_t a_stride, const float* b, int64_t depth, Keep keep, float* c,
                          int64_t c_stride, Ahead& ahead) {
  Floats sum[kRows][kVectors];
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++)
      sum[r][v] = keep.factors ? load_floats(c + r * c_stride + v * kLanes) * splat(keep.factors[r]) : Floats{};
  for (int64_t k = 0; k < depth; k++, b += kPanel) {
    ahead.fetch();
    Floats column[kVectors];
    for (int v = 0; v < kVectors; v++) column[v] = load_floats(b + v * kLanes);
    for (int r = 0; r < kRows; r++) {
      const Floats left = splat(a[r * a_stride + k]);
      for (int v = 0; v < kVectors; v++) sum[r][v] = multiply_add(left, column[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++) store(c + r * c_stride + v * kLanes, sum[r][v]);
}

template <int kRows>
void multiply_rows(const float* a, int64_t a_stride, const float* b, int64_t depth, Keep keep, float* c,
                   int64_t c_stride, int64_t columns, Ahead& ahead) {
  for (int64_t at = 0; at < columns; at += kPanel, b += depth * kPanel) {
    if (columns - at > kPanel - kLanes)
      multiply_tile<kRows, kColumnVectors>(a, a_stride, b, depth, keep, c + at, c_stride, ahead);
    else
      multiply_tile<kRows, 1>(a, a_stride, b, depth, keep, c + at, c_stride, ahead);
  }
}

// rows <= kRowTile; columns are rounded up to whole vectors.
template <int kRows = kRowTile>
void multiply(int rows, const float* a, int64_t a_stride, const float* b, int64_t depth, Keep keep, float* c,
              int64_t c_stride, int64_t columns, Ahead& ahead) {
  if constexpr (kRows > 1)
    if (rows < kRows) return multiply<kRows - 1>(rows, a, a_stride, b, depth, keep, c, c_stride, columns, ahead);
  multiply_rows<kRows>(a, a_stride, b, depth, keep, c, c_stride, columns, ahead);
}

// `count` numbers at p (bfloat16 or float), beginning with number `at`, as kLanes lanes; zeros after the last.
template <typename Number>
INLINE Floats load_lanes(const Number* p, int64_t at, int64_t count) {
  constexpr int64_t kNumbers = kLanes * kPer;
  if (count - at >= kNumbers) return to_lanes(p + at);
  Number rest[kNumbers] = {};
  if (count > at) std::memcpy(rest, p + at, size_t(count - at) * sizeof(Number));
  return to_lanes(rest);
}

// Keys (count, dim) -> panels (dim / kPer, kPanel).
template <typename Number>
INLINE void lay_out_keys(const Number* keys, int64_t count, int dim, float* to) {
  const int64_t depth = (dim + kPer - 1) / kPer, whole = dim / (kLanes * kPer) * kLanes;
  for (int64_t key = 0; key < count; key += kLanes) {
    float* panel = to + key / kPanel * depth * kPanel + key % kPanel;
    const Number* row = keys + key * dim;
    int64_t at = 0;
    if (count - key >= kLanes)
      for (; at < whole; at += kLanes) {
        Floats lanes[kLanes];
        for (int i = 0; i < kLanes; i++) lanes[i] = to_lanes(row + i * dim + at * kPer);
        transpose(lanes);
        for (int i = 0; i < kLanes; i++) store(panel + (at + i) * kPanel, lanes[i]);
      }
    for (; at < depth; at += kLanes) {
      Floats lanes[kLanes];
      for (int i = 0; i < kLanes; i++)
        lanes[i] = key + i < count ? load_lanes(row + i * dim, at * kPer, dim) : Floats{};
      transpose(lanes);
      const int64_t used = depth - at < kLanes ? depth - at : kLanes;
      for (int64_t i = 0; i < used; i++) store(panel + (at + i) * kPanel, lanes[i]);
    }
  }
}

template <typename Number>
INLINE Floats weave_whole(const Number* row, int64_t dim) {
  if constexpr (kPairs)
    return weave_rows(row, row + dim);
  else
    return to_lanes(row);
}

// One lane row of values: columns at .. at + kLanes - 1 of a token, or of it and its neighbour (zeros if it has none).
template <typename Number>
INLINE Floats weave(const Number* row, bool neighbour, int64_t at, int64_t dim) {
  if constexpr (!kPairs) {
    return load_lanes(row, at, dim);
  } else {
    if (neighbour && dim - at >= kLanes) return weave_rows(row + at, row + dim + at);
    Number pairs[2 * kLanes] = {};
    for (int64_t i = 0; i < kLanes && at + i < dim; i++) {
      pairs[2 * i] = row[at + i];
      if (neighbour) pairs[2 * i + 1] = row[dim + at + i];
    }
    return to_lanes(pairs);
  }
}

// Values (count, dim) -> panels (count / kPer, kPanel).
template <typename Number>
INLINE void lay_out_values(const Number* values, int64_t count, int dim, float* to) {
  const int64_t depth = (count + kPer - 1) / kPer, panel = depth * kPanel;
  for (int64_t k = 0; k < depth; k++, values += kPer * dim, to += kPanel) {
    const bool neighbour = k * kPer + 1 < count;
    for (int64_t at = 0; at < dim; at += kLanes)
      store(to + at / kPanel * panel + at % kPanel, weave(values, neighbour, at, dim));
  }
}

// The two products for so few rows that all their sums stay in registers: keys and values are turned over in registers
// and used at once. Reading and multiplying take turns within a few dozen instructions.
template <int kRows, typename Number>
INLINE void few_scores(const float* q, int64_t q_stride, const Number* keys, int64_t count, int dim, float* scores,
                       Ahead& to_fetch) {
  Ahead ahead = to_fetch;
  const int64_t depth = (dim + kPer - 1) / kPer;
  for (int64_t key = 0; key < count; key += kLanes, keys += kLanes * dim) {
    Floats sum[kRows] = {};
    for (int64_t at = 0; at < depth; at += kLanes) {
      Floats lanes[kLanes];
      const float* left = q + at;
      if (count - key >= kLanes && dim - at * kPer >= kLanes * kPer) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) lanes[i] = to_lanes(keys + i * dim + at * kPer);
        transpose(lanes);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) {
          ahead.fetch();
#pragma GCC unroll 16
          for (int r = 0; r < kRows; r++) sum[r] = multiply_add(splat(left[r * q_stride + i]), lanes[i], sum[r]);
        }
      } else {
        for (int i = 0; i < kLanes; i++)
          lanes[i] = key + i < count ? load_lanes(keys + i * dim, at * kPer, dim) : Floats{};
        transpose(lanes);
        for (int i = 0; i < kLanes; i++)
          for (int r = 0; r < kRows; r++) sum[r] = multiply_add(splat(left[r * q_stride + i]), lanes[i], sum[r]);
      }
    }
    for (int r = 0; r < kRows; r++) store(scores + r * kKeyBlock + key, sum[r]);
  }
  to_fetch = ahead;
}

// `used` of the block's `count` values; sums (kRows, dim) are first multiplied by factors.
template <int kRows, typename Number>
INLINE void few_outputs(const float* weights, const Number* values, int64_t used, int64_t count, int dim,
                        const float* factors, float* sums, int64_t stride, Ahead& to_fetch) {
  constexpr int kWide = 2;
  Ahead ahead = to_fetch;
  for (int64_t at = 0; at < dim; at += kWide * kLanes) {
    Floats sum[kRows][kWide];
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kWide; v++) sum[r][v] = load_floats(sums + r * stride + at + v * kLanes) * splat(factors[r]);
    const auto add = [&](int64_t k, const Floats* column) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r++) {
        const Floats left = splat(weights[r * (kKeyBlock / kPer) + k]);
        for (int v = 0; v < kWide; v++) sum[r][v] = multiply_add(left, column[v], sum[r][v]);
      }
    };
    int64_t k = 0;
    const int64_t whole = dim - at >= kWide * kLanes ? (used < count ? used : count) / kPer : 0;
    for (; k < whole; k++) {
      ahead.fetch();
      ahead.fetch();
      Floats column[kWide];
      for (int v = 0; v < kWide; v++) column[v] = weave_whole(values + k * kPer * dim + at + v * kLanes, dim);
      add(k, column);
    }
    for (; k * kPer < used; k++) {
      Floats column[kWide];
      for (int v = 0; v < kWide; v++)
        column[v] = weave(values + k * kPer * dim, k * kPer + 1 < count, at + v * kLanes, dim);
      add(k, column);
    }
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kWide; v++) store(sums + r * stride + at + v * kLanes, sum[r][v]);
  }
  to_fetch = ahead;
}

template <int kRows, typename Number>
void few_scores_of(int rows, const float* q, int64_t q_stride, const Number* keys, int64_t count, int dim, float* scores,
                   Ahead& ahead) {
  if constexpr (kRows > 1)
    if (rows < kRows) return few_scores_of<kRows - 1>(rows, q, q_stride, keys, count, dim, scores, ahead);
  few_scores<kRows>(q, q_stride, keys, count, dim, scores, ahead);
}

template <int kRows, typename Number>
void few_outputs_of(int rows, const float* weights, const Number* values, int64_t used, int64_t count, int dim,
                    const float* factors, float* sums, int64_t stride, Ahead& ahead) {
  if constexpr (kRows > 1)
    if (rows < kRows)
      return few_outputs_of<kRows - 1>(rows, weights, values, used, count, dim, factors, sums, stride, ahead);
  few_outputs<kRows>(weights, values, used, count, dim, factors, sums, stride, ahead);
}

struct Seen {  // keys of a block that a row sees: low .. high - 1
  int64_t low, high;
};

INLINE Seen seen_by(const AttentionTask& t, int64_t token, int64_t block, int64_t count) {
  int64_t high = t.last_seen + token + 1, low = t.window > 0 ? high - t.window : 0;
  low = (low > block ? low : block) - block;
  high = (high < block + count ? high : block + count) - block;
  return {low < count ? low : count, high > low ? high : (low < count ? low : count)};
}

// exp(scores - top) of the seen keys, zero elsewhere up to `width`, as the next product's A; returns their sum.
INLINE float weigh(float* scores, Seen seen, int64_t width, float top, float* weights) {
  Floats sum{};
  for (int64_t at = 0; at < width; at += kLanes * kPer) {
    Floats part[kPer];
    for (int i = 0; i < kPer; i++) {
      part[i] = exponential(load_floats(scores + at + i * kLanes) - splat(top));
      sum += part[i];
    }
    store_lanes(part, weights + at / kPer);
  }
  float total = 0;
  float lanes[kLanes];
  store(lanes, sum);
  for (int i = 0; i < kLanes; i++) total += lanes[i];
  return total;
}

template <typename Number>
void attend_to(const AttentionTask& t, const Number* keys, const Number* values, float* scratch) {
  constexpr float kNever = -__builtin_inff();
  const int64_t rows = int64_t(t.tokens) * t.group, wide = (int64_t(t.dim) + 63) / 64 * 64;
  const int64_t depth = (t.dim + kPer - 1) / kPer;
  float* q = scratch;                        // (rows, depth)
  float* sums = q + rows * wide;             // (rows, wide)
  float* tops = sums + rows * wide;          // (rows,)
  float* totals = tops + rows;               // (rows,)
  float* laid_keys = totals + rows;
  float* laid_values = laid_keys + kKeyBlock * wide;
  float* scores = laid_values + kKeyBlock * wide;          // (kRowTile, kKeyBlock)
  float* weights = scores + kRowTile * (kKeyBlock + 64);   // (kRowTile, kKeyBlock / kPer)
  for (int64_t row = 0; row < rows; row++) {
    const float* from = t.q + row / t.group * t.q_token + row % t.group * t.q_head;
    float* to = q + row * wide;
    for (int64_t at = 0; at < depth; at += kLanes) {
      float scaled[kLanes * kPer] = {};
      const int64_t left = t.dim - at * kPer, used = left < kLanes * kPer ? left : kLanes * kPer;
      for (int64_t i = 0; i < used; i++) scaled[i] = from[at * kPer + i] * t.scale;
      Floats part[kPer];
      for (int i = 0; i < kPer; i++) part[i] = load_floats(scaled + i * kLanes);
      store_lanes(part, to + at);
    }
    tops[row] = kNever;
    totals[row] = 0;
  }
  std::memset(sums, 0, size_t(rows * wide) * 4);
  const int64_t end = t.last_seen + t.tokens < t.last_key ? t.last_seen + t.tokens : t.last_key;
  int64_t begin = t.first_key;
  if (t.window > 0 && t.last_seen + 1 - t.window > begin) begin = t.last_seen + 1 - t.window;
  for (int64_t block = begin; block < end; block += kKeyBlock) {
    const int64_t count = end - block < kKeyBlock ? end - block : kKeyBlock;
    const bool few = rows <= kRowTile;
    if (!few) {
      lay_out_keys(keys + block * t.dim, count, t.dim, laid_keys);
      lay_out_values(values + block * t.dim, count, t.dim, laid_values);
    }
    const int64_t all = (count + kPer - 1) / kPer;  // depth of the values' panels
    const int64_t next = block + kKeyBlock, lines = rows > 4 * kRowTile ? 0 : kKeyBlock * t.dim * int64_t(sizeof(Number)) / 64;
    Ahead next_keys{reinterpret_cast<const char*>(keys + next * t.dim), lines};
    Ahead next_values{reinterpret_cast<const char*>(values + next * t.dim), lines};
    for (int64_t row = 0; row < rows; row += kRowTile) {
      const int used = int(rows - row < kRowTile ? rows - row : kRowTile);
      int64_t most = 0;
      for (int r = 0; r < used; r++) {
        const Seen seen = seen_by(t, (row + r) / t.group, block, count);
        if (seen.high > seen.low && seen.high > most) most = seen.high;
      }
      if (most == 0) continue;
      const int64_t width = (most + kLanes * kPer - 1) / (kLanes * kPer) * (kLanes * kPer);
      if (few)
        few_scores_of<kRowTile>(used, q, wide, keys + block * t.dim, most, t.dim, scores, next_keys);
      else
        multiply(used, q + row * wide, wide, laid_keys, depth, {nullptr}, scores, kKeyBlock, width, next_keys);
      float factors[kRowTile];
      for (int r = 0; r < used; r++) {
        const Seen seen = seen_by(t, (row + r) / t.group, block, count);
        float* line = scores + r * kKeyBlock;
        float* weight = weights + r * (kKeyBlock / kPer);
        factors[r] = 1;
        if (seen.high <= seen.low) {
          std::memset(weight, 0, size_t(width / kPer) * 4);
          continue;
        }
        for (int64_t i = 0; i < seen.low; i++) line[i] = kNever;
        for (int64_t i = seen.high; i < width; i++) line[i] = kNever;
        Floats best = load_floats(line);
        for (int64_t at = kLanes; at < width; at += kLanes) {
          const Floats next = load_floats(line + at);
          best = best > next ? best : next;
        }
        float lanes[kLanes], top = tops[row + r];
        store(lanes, best);
        for (int i = 0; i < kLanes; i++) top = lanes[i] > top ? lanes[i] : top;
        factors[r] = totals[row + r] > 0 ? __builtin_expf(tops[row + r] - top) : 0.0f;
        tops[row + r] = top;
        totals[row + r] = totals[row + r] * factors[r] + weigh(line, seen, width, top, weight);
      }
      if (few) {
        few_outputs_of<kRowTile>(used, weights, values + block * t.dim, most, count, t.dim, factors, sums, wide,
                                 next_values);
        continue;
      }
      // The panels hold all keys of the block: the depth that is used differs from the one that they are laid out for.
      for (int64_t at = 0; at < t.dim; at += kPanel) {
        const int64_t columns = t.dim - at < kPanel ? t.dim - at : kPanel;
        multiply(used, weights, kKeyBlock / kPer, laid_values + at / kPanel * all * kPanel,
                 (most + kPer - 1) / kPer, {factors}, sums + row * wide + at, wide, columns,
                 next_values);
      }
    }
  }
  for (int64_t row = 0; row < rows; row++) {
    const int64_t token = row / t.group, head = row % t.group;
    float* out = t.out + token * t.out_token + head * t.out_head;
    const float inverse = totals[row] > 0 ? 1.0f / totals[row] : 0.0f;
    for (int i = 0; i < t.dim; i++) out[i] = sums[row * wide + i] * inverse;
    if (t.lse) t.lse[token * t.lse_token + head * t.lse_head] = totals[row] > 0 ? tops[row] + __builtin_logf(totals[row]) : kNever;
  }
}

// scratch: attention_scratch() bytes, on a cache line.
void attend(const AttentionTask& task, void* scratch) {
  float* floats = static_cast<float*>(scratch);
  if (task.bfloat16)
    attend_to(task, static_cast<const uint16_t*>(task.keys), static_cast<const uint16_t*>(task.values), floats);
  else if constexpr (kPairs)
    avx512_kernels()->attend(task, scratch);  // floats are not rounded to pairs of bfloat16
  else
    attend_to(task, static_cast<const float*>(task.keys), static_cast<const float*>(task.values), floats);
}

// Attention over several disjoint key sets from that over each: `count` parts (dim,) with their
// log-sum-exps -> out (dim,); returns the log-sum-exp of all. The identity is that of online softmax (arXiv 1805.02867).
float merge(const float* const* parts, const float* lses, int count, int dim, float* out) {
  float top = -__builtin_inff();
  for (int i = 0; i < count; i++) top = lses[i] > top ? lses[i] : top;
  std::memset(out, 0, size_t(dim) * 4);
  if (top == -__builtin_inff()) return top;
  float total = 0;
  for (int i = 0; i < count; i++) {
    const float weight = __builtin_expf(lses[i] - top);
    total += weight;
    for (int d = 0; d < dim; d++) out[d] += weight * parts[i][d];
  }
  for (int d = 0; d < dim; d++) out[d] /= total;
  return top + __builtin_logf(total);
}

}  // namespace
}  // namespace minimemo
