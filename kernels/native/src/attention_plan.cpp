// How an attention job is divided into pieces of work.
#include <algorithm>

#include "attention.h"

namespace minimemo {
namespace {

// Few pieces idle threads; many cost merges, and each waits for its first block, which nobody fetched ahead: 16k keys in
// 32 splits a head took a tenth longer than in 16 (7.4 against 6.7 ms for 24 layers of two heads, two threads).
constexpr int64_t kLeastKeys = 512, kMostSplits = 16, kEnoughPieces = 16;

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

void plan_segment(const Attention& job, Segment& s) {
  s.first_key = s.tokens, s.last_key = 0;
  if (!job.positions && s.first_row < s.last_row) s.first_key = 0, s.last_key = s.tokens;
  for (int64_t r = s.first_row; job.positions && r < s.last_row; r++) {
    int64_t low, high;
    seen_keys(job, s, r, &low, &high);
    if (low >= high) continue;
    s.first_key = std::min(s.first_key, low);
    s.last_key = std::max(s.last_key, high);
  }
  s.first_key -= s.first_key % kKeys;
  const int64_t keys = std::max<int64_t>(0, s.last_key - s.first_key), rows = s.last_row - s.first_row;
  s.row_block = std::max<int64_t>(1, kMaxCells / padded_dim(job.dim) / job.group);
  s.row_blocks = ceiling(rows, s.row_block);
  if (s.row_blocks > 0) s.row_block = ceiling(rows, s.row_blocks);
  s.splits = 0, s.split_keys = 0;
  if (keys == 0 || rows == 0) return;
  const int64_t wanted = std::min(kMostSplits, ceiling(kEnoughPieces, s.row_blocks));
  s.split_keys = ceiling(std::max(ceiling(keys, wanted), std::min(keys, kLeastKeys)), kKeys) * kKeys;
  s.splits = ceiling(keys, s.split_keys);
}

}  // namespace

AttentionPlan plan_attention(Attention& job) {
  AttentionPlan plan{};
  job.parts = 0;
  for (int i = 0; i < job.count; i++) {
    Segment& s = job.segments[i];
    plan_segment(job, s);
    s.first_piece = plan.pieces;
    s.first_partial = plan.workspace;
    plan.pieces += s.splits * s.row_blocks * job.kv_heads;
    plan.workspace += s.splits * job.kv_heads * (s.last_row - s.first_row) * job.group * partial_floats(job.dim);
    job.parts += s.splits;
  }
  const bool whole = job.parts == 1 && job.count == 1 && job.segments[0].first_row == 0 &&
                     job.segments[0].last_row == job.rows;
  if (whole) {
    plan.workspace = 0;
    return plan;
  }
  plan.merges = ceiling(job.rows * job.group, kMergeRows) * job.kv_heads;
  job.parts = std::max<int64_t>(job.parts, 2);  // pieces leave partial results even where there is one, or none
  return plan;
}

const AttentionKernels* attention_kernels(int most) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  const AttentionKernels* found = nullptr;
#if defined(MINIMEMO_BFLOAT16)
  if (most >= 3 && wide && __builtin_cpu_supports("avx512bf16")) found = avx512bf16_attention();
#endif
  if (!found && most >= 2 && wide) found = avx512_attention();
  if (!found && most >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found = avx2_attention();
  if (found) return found;
#endif
  return most >= 0 ? portable_attention() : nullptr;
}

}  // namespace minimemo
