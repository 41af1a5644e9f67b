// Attention over dense and packed keys and values, for a chunk of queries or a single one: what a caller fills in, and
// the functions of each variant. A job is divided into pieces by shapes and positions alone, so the same bits come out of
// any number of threads.
//
// Letters: H query heads, G kv heads, N query rows, T keys, D head dim. The H / G query heads of a kv head are folded
// into rows (row n, head h -> folded row n * group + h), so that keys are read once for all of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base.h"
#include "memory.h"
#include "threads.h"

namespace minimemo {

constexpr int kKeys = 64;               // keys of one block; a group of packed keys
constexpr int kMaxDim = 256;            // head dim
constexpr int kMaxCells = 16384;        // folded rows * padded head dim of one piece: 64 KiB of float32 sums
constexpr int64_t kNoWindow = INT64_MAX;

enum Store : int32_t { kStoreFloat = 0, kStoreBfloat16 = 1, kStorePacked8 = 2, kStorePacked4 = 3 };

// Keys and values that rows first_row .. last_row - 1 attend to. Tokens of a head follow each other without gaps.
// Packed (kernels/formats.py): W = D bytes a token, or D / 2: byte i holds dim i in its low half, dim i + D/2 above.
struct Segment {
  int32_t store;
  const void* keys;               // (G, T, D) elements, or (G, T, W) codes
  const void* values;
  int64_t key_stride, value_stride;  // from one kv head to the next, in elements (dense) or bytes (packed)
  const uint16_t* key_scale;      // packed only, half precision: (G, T / 64, D)
  const uint16_t* key_low;
  const uint16_t* value_scale;    // packed only, half precision: (G, T)
  const uint16_t* value_low;
  int64_t key_param_stride, value_param_stride;  // from one kv head to the next, in elements
  int64_t tokens;                 // T; a multiple of 64 where packed
  int64_t start;                  // position of key 0; counts only where the job has positions
  int64_t first_row, last_row;

  // Filled in by attend: key ranges (splits) x row blocks x kv heads are the pieces.
  int64_t first_key, last_key;    // keys that some row sees, from a multiple of 64 on
  int64_t split_keys, splits;
  int64_t row_block, row_blocks;
  int64_t first_piece, first_partial;
};

struct Attention {
  const float* q;                 // (H, N, D)
  int64_t q_head, q_row;          // strides, in elements; D is contiguous
  float* out;                     // (H, N, D)
  int64_t out_head, out_row;
  float* lse;                     // (H, N) log-sum-exp of the scaled scores, contiguous, or null
  int32_t kv_heads, group, dim;
  int64_t rows;                   // N
  float scale;                    // > 0
  const int64_t* positions;       // (N) of the queries, or null: every row sees every key of its segments
  int64_t window;                 // a query at p sees p - window < key <= p; kNoWindow: no lower end
  Segment* segments;
  int32_t count;
  float* workspace;               // by attend
  int64_t parts;                  // by attend: sum of splits over segments; 1: pieces write results themselves
};

constexpr int64_t kMergeRows = 8;  // folded rows of one merge

struct AttentionKernels {
  const char* name;
  void (*run)(const Attention& job, int64_t piece);
  void (*merge)(const Attention& job, int64_t index);
  // Whether kFewRows rows at most get the same bits from one bfloat16 segment as from one each, for multiples of 64 dims.
  bool alike = false;
};

const AttentionKernels* portable_attention();
const AttentionKernels* avx2_attention();        // these four on x86-64
const AttentionKernels* avx512_attention();      // F, BW, VL, VNNI
const AttentionKernels* avx512bf16_attention();  // and BF16
const AttentionKernels* amx_attention();         // and AMX

// Compilers that know AVX512-BF16; others leave that variant out.
#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)
#define MINIMEMO_BFLOAT16 1
#endif

// The best that this processor runs among variants 0 .. `most` (portable, avx2, avx512, avx512bf16, amx).
const AttentionKernels* attention_kernels(int most);

struct Workspace {  // of partial results, for one job after the other
  Memory memory;
  int64_t floats = 0;
};

// Whether `rows` rows, each of which sees one key more than the one before and the first `keys` of them, get the bits of a
// segment each from one segment: their keys are cut at the same places.
bool cut_alike(const Attention& job, int64_t keys, int64_t rows);

// Fills in the job's results; a row that sees no key gets zeros, and lse -inf. False without memory.
bool attend(const AttentionKernels& kernels, Attention& job, Work work, int threads, Workspace& workspace);

// Keys low .. high - 1 of a segment are what row `row` sees.
inline void seen_keys(const Attention& job, const Segment& s, int64_t row, int64_t* low, int64_t* high) {
  *low = 0, *high = s.tokens;
  if (!job.positions) return;
  const int64_t past = job.positions[row] - s.start;
  if (past < s.tokens) *high = past < 0 ? 0 : past + 1;
  if (past >= job.window) *low = past - job.window + 1;
}

inline int padded_dim(int dim) { return (dim + 15) / 16 * 16; }
// One partial result: sums of a folded row (padded dim), its largest scaled score in powers of two, its sum of weights.
inline int64_t partial_floats(int dim) { return padded_dim(dim) + 16; }

}  // namespace minimemo
