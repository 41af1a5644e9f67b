// A piece of attention, written once over the vectors of simd_*.h and compiled once an instruction set: blocks of 64
// keys are laid out once for products and met by all folded rows of the piece, with the softmax of arXiv 1805.02867
// and arXiv 2205.14135. Weights are powers of two: the scores' factor holds log2(e).
//
// A row's numbers depend on its own query and keys and on how attend cuts the keys, not on threads.
// No templates of the standard library here (kernels.h says why).
#pragma once

#include "attention_float.h"

namespace minimemo {
namespace {

constexpr float kNever = -__builtin_inff();
constexpr float kLog2E = 1.44269504089f, kLn2 = 0.693147180560f;

struct Place {  // of a piece
  int head;
  int64_t split, first_row, rows;  // rows: of the job, counted from first_row
};

inline Place find_place(const Attention& job, const Segment& s, int64_t piece) {
  int64_t i = piece - s.first_piece;
  Place place;
  // The last rows see the most keys: begin with them, so that the end of a job is made of small pieces.
  const int64_t block = s.row_blocks - 1 - i / (job.kv_heads * s.splits);
  i %= job.kv_heads * s.splits;
  place.head = int(i / s.splits);
  place.split = i % s.splits;
  place.first_row = s.first_row + block * s.row_block;
  place.rows = s.last_row - place.first_row < s.row_block ? s.last_row - place.first_row : s.row_block;
  return place;
}

inline float* partial_of(const Attention& job, const Segment& s, int64_t split, int head, int64_t folded) {
  const int64_t rows = (s.last_row - s.first_row) * job.group;
  return job.workspace + s.first_partial + ((split * job.kv_heads + head) * rows + folded) * partial_floats(job.dim);
}

// Every row's softmax so far.
struct Rows {
  float* sums;     // (rows, padded)
  float* totals;   // (rows, kLanes): weights, added up lane by lane
  float* largest;  // (rows): scores times factor
  int32_t* low;    // (rows): keys low .. high - 1 of the segment are seen
  int32_t* high;
};

INLINE Floats hide(Floats scores, int32_t first, int32_t low, int32_t high) {
  Ints index;
  for (int i = 0; i < kLanes; i++) index[i] = first + i;
  const Ints seen = (index >= splat(low)) & (index < splat(high));
  return Floats((Ints(scores) & seen) | (Ints(splat(kNever)) & ~seen));
}

// Scores (count, 64), those of kTogether strips side by side -> weights, and what the sums so far must be multiplied by.
template <class Way>
INLINE void softmax(Way& way, const Rows& rows, int64_t row, int count, int32_t key, bool hidden, float factor,
                    float* scores, uint32_t* weights, float* keep) {
  constexpr int kVectors = kKeys / kLanes;
  alignas(64) float after[16];
  for (int r = 0; r < 16; r++) after[r] = kNever;
  for (int r = 0; r < count; r++) {
    float* line = scores + r * Way::kTogether * kKeys;
    Floats most = splat(kNever);
    for (int v = 0; v < kVectors; v++) {
      Floats s = load_floats(line + v * kLanes);
      if (hidden) {
        s = hide(s, key + v * kLanes, rows.low[row + r], rows.high[row + r]);
        store(line + v * kLanes, s);
      }
      most = maximum(most, s);
    }
    after[r] = largest_of(most);
  }
  for (int r = 0; r < 16; r += kLanes) {  // rows past `count` stay as they are
    const Floats old = load_floats(rows.largest + row + r);
    const Floats now = maximum(old, load_floats(after + r) * splat(factor));
    const Ints nothing = now == splat(kNever);  // seen yet: weights are 2^(-inf - 0)
    const Floats base = Floats(Ints(now) & ~nothing);
    store(rows.largest + row + r, now);
    store(after + r, base);
    store(keep + r, exp2_of(old - base));
  }
  for (int r = 0; r < count; r++) {
    float* line = scores + r * Way::kTogether * kKeys;
    float* total = rows.totals + (row + r) * kLanes;
    Floats sum = load_floats(total) * splat(keep[r]);
    for (int v = 0; v < kVectors; v++) {
      const Floats w = Way::weight(multiply_add(load_floats(line + v * kLanes), splat(factor), splat(-after[r])));
      sum = sum + w;
      way.take_weights(weights + r * Way::kWeightCells, line, v, w);
    }
    store(total, sum);
  }
  way.finish_weights(count, weights, scores);
}

template <class Way>
void run_piece(const Attention& job, const Segment& s, const Place& place, Way& way, const Rows& rows) {
  const int64_t folded = place.rows * job.group;
  const int padded = padded_dim(job.dim);
  way.begin(folded);
  for (int64_t n = 0; n < place.rows; n++) {
    int64_t low, high;
    seen_keys(job, s, place.first_row + n, &low, &high);
    for (int h = 0; h < job.group; h++) {
      const int64_t row = n * job.group + h;
      rows.low[row] = int32_t(low), rows.high[row] = int32_t(high);
      const int64_t head = int64_t(place.head) * job.group + h;
      way.take_query(job.q + head * job.q_head + (place.first_row + n) * job.q_row, row);
      rows.largest[row] = kNever;
    }
  }
  for (int i = 0; i < 16; i++) rows.largest[folded + i] = kNever;
  __builtin_memset(rows.sums, 0, size_t(folded) * padded * 4);
  __builtin_memset(rows.totals, 0, size_t(folded) * kLanes * 4);

  int64_t first = s.last_key, last = s.first_key;  // keys that some row of the piece sees
  for (int64_t row = 0; row < folded; row += job.group) {
    first = rows.low[row] < first ? rows.low[row] : first;
    last = rows.high[row] > last ? rows.high[row] : last;
  }
  const int64_t begin = s.first_key + place.split * s.split_keys, end = begin + s.split_keys;
  first = first - first % kKeys > begin ? first - first % kKeys : begin;
  last = last < end ? last : end;
  const float factor = job.scale * kLog2E;
  constexpr int kStrips = Way::kTogether;
  struct Strip {  // of rows
    int count;
    bool hidden;
    alignas(64) uint32_t weights[Way::kRows * Way::kWeightCells];
    alignas(64) float keep[16];
  } strips[kStrips];
  alignas(64) float scores[Way::kRows * kStrips * kKeys];
  for (int64_t key = first; key < last; key += kKeys) {
    const int valid = int(s.tokens - key < kKeys ? s.tokens - key : kKeys);
    way.take_block(s, place.head, key, valid);
    for (int64_t top = 0; top < folded; top += kStrips * Way::kRows) {
      const bool more = key + kKeys < last && top == 0;
      // What one step writes the next reads: strips take each step together, so that it need not wait.
      for (int i = 0; i < kStrips; i++) {
        const int64_t row = top + i * Way::kRows, left = folded - row;
        Strip& strip = strips[i];
        bool any = false;
        strip.count = int(left < 0 ? 0 : left < Way::kRows ? left : Way::kRows), strip.hidden = valid < kKeys;
        for (int r = 0; r < strip.count; r++) {
          any |= rows.low[row + r] < key + kKeys && rows.high[row + r] > key;
          strip.hidden |= rows.low[row + r] > key || rows.high[row + r] < key + kKeys;
        }
        if (!any) strip.count = 0;
        if (any) way.score(row, strip.count, scores + i * kKeys, more && i == 0);
      }
      for (int i = 0; i < kStrips; i++)
        if (Strip& strip = strips[i]; strip.count)
          softmax(way, rows, top + i * Way::kRows, strip.count, int32_t(key), strip.hidden, factor, scores + i * kKeys,
                  strip.weights, strip.keep);
      for (int i = 0; i < kStrips; i++)
        if (Strip& strip = strips[i]; strip.count)
          way.add_values(strip.count, strip.weights, rows.sums + (top + i * Way::kRows) * padded, strip.keep,
                         more && i == 0);
    }
  }
}

INLINE void write_row(const Attention& job, int head, int64_t row, const float* sums, float largest, float total) {
  const int64_t n = row / job.group, h = int64_t(head) * job.group + row % job.group;
  const bool seen = !(total <= 0);  // or not a number
  const float share = seen ? 1 / total : 0;
  float* out = job.out + h * job.out_head + n * job.out_row;
  for (int d = 0; d < job.dim; d++) out[d] = sums[d] * share;
  if (job.lse) job.lse[h * job.rows + n] = seen ? (largest + __builtin_log2f(total)) * kLn2 : kNever;
}

// A single row (a decode step) that sees at most so many keys takes its queries as two planes: 128 greedy tokens are then
// those of float32 for 8 prompts of ten, else for 7. It costs a third of attention's arithmetic: 8 % of a step over 16k
// keys.
constexpr int64_t kFineKeys = 4096;

// Rounding a query shifts its scores of all keys by what the keys have in common, which can be large. Keys that are met
// by the same rounded query keep their weights; where other segments are met by an exact one, the query is taken as the
// sum of two rounded numbers. What decides are the segments that a row sees, whichever rows are in the job beside it.
// Steps in tiles (attention_amx.cpp) always take two.
inline int planes_of(const Attention& job, const Segment& s) {
  int64_t keys = 0;
  bool alone = true;
  for (int i = 0; i < job.count; i++) {
    const Segment& other = job.segments[i];
    if (other.last_row <= s.first_row || other.first_row >= s.last_row) continue;
    if (other.store != kStoreBfloat16) return 2;
    keys += other.tokens;
    alone = alone && other.last_row - other.first_row == 1;
  }
  return alone && keys <= kFineKeys ? 2 : 1;
}

constexpr int kBeyond = 16 * kMaxDim;  // cells of rows that tiles compute past the last one

template <class Way>
void run_way(const Attention& job, const Segment& s, int64_t piece) {
  alignas(64) uint32_t keys[kMaxDim * kKeys], values[kMaxDim * kKeys], queries[kMaxCells + kBeyond];
  alignas(64) float sums[kMaxCells + kBeyond], totals[kMaxCells / 16 * kLanes], largest[kMaxCells / 16 + 16];
  alignas(64) int32_t low[kMaxCells / 16], high[kMaxCells / 16];
  const int padded = padded_dim(job.dim);
  const Place place = find_place(job, s, piece);
  Way way;
  way.dim = job.dim, way.padded = padded, way.planes = planes_of(job, s);
  way.keys = keys, way.values = values, way.queries = queries;
  const Rows rows{sums, totals, largest, low, high};
  run_piece(job, s, place, way, rows);
  for (int64_t row = 0; row < place.rows * job.group; row++) {
    const float total = sum_of(load_floats(totals + row * kLanes));
    way.arrange(sums + row * padded, job.dim);
    if (job.parts == 1) {
      write_row(job, place.head, place.first_row * job.group + row, sums + row * padded, largest[row], total);
      continue;
    }
    float* to = partial_of(job, s, place.split, place.head, (place.first_row - s.first_row) * job.group + row);
    __builtin_memcpy(to, sums + row * padded, size_t(padded) * 4);
    to[padded] = largest[row];
    to[padded + 1] = total;
  }
}

inline const Segment& segment_of(const Attention& job, int64_t piece) {
  int i = job.count - 1;
  while (job.segments[i].first_piece > piece) i--;
  return job.segments[i];
}

// Partial results of folded rows -> results.
inline void merge(const Attention& job, int64_t index) {
  const int64_t rows = job.rows * job.group, per_head = (rows + kMergeRows - 1) / kMergeRows;
  const int head = int(index / per_head), padded = padded_dim(job.dim);
  const int64_t first = index % per_head * kMergeRows, last = first + kMergeRows < rows ? first + kMergeRows : rows;
  for (int64_t row = first; row < last; row++) {
    alignas(64) float sums[kMaxDim] = {};
    float largest = kNever, total = 0;
    for (int pass = 0; pass < 2; pass++)
      for (int i = 0; i < job.count; i++) {
        const Segment& s = job.segments[i];
        if (row / job.group < s.first_row || row / job.group >= s.last_row) continue;
        for (int64_t split = 0; split < s.splits; split++) {
          const float* from = partial_of(job, s, split, head, row - s.first_row * job.group);
          const float found = from[padded];
          if (pass == 0) largest = found > largest ? found : largest;
          if (pass == 0 || found == kNever) continue;
          alignas(64) float share[kLanes];
          store(share, exp2_of(splat(found - largest)));
          total += from[padded + 1] * share[0];
          for (int d = 0; d < padded; d += kLanes)
            store(sums + d, multiply_add(load_floats(from + d), splat(share[0]), load_floats(sums + d)));
        }
      }
    write_row(job, head, row, sums, largest, total);
  }
}

}  // namespace
}  // namespace minimemo
