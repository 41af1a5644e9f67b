// How an attention job is divided into pieces of work, and its call from Python.
#include <algorithm>

#include "attention.h"

namespace minimemo {
namespace {

// Few pieces idle threads; many cost merges, and each waits for its first block, which nobody fetched ahead: 16k keys in
// 32 splits a head took a tenth longer than in 16 (7.4 against 6.7 ms for 24 layers of two heads, two threads).
constexpr int64_t kLeastKeys = 512, kMostSplits = 16, kEnoughPieces = 16;

int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t rows_at_once(const Attention& job) { return std::max<int64_t>(1, kMaxCells / padded_dim(job.dim) / job.group); }

int64_t keys_of_a_split(int64_t keys, int64_t row_blocks) {
  const int64_t wanted = std::min(kMostSplits, ceiling(kEnoughPieces, row_blocks));
  return ceiling(std::max(ceiling(keys, wanted), std::min(keys, kLeastKeys)), kKeys) * kKeys;
}

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
  s.row_block = rows_at_once(job);
  s.row_blocks = ceiling(rows, s.row_block);
  if (s.row_blocks > 0) s.row_block = ceiling(rows, s.row_blocks);
  s.splits = 0, s.split_keys = 0;
  if (keys == 0 || rows == 0) return;
  s.split_keys = keys_of_a_split(keys, s.row_blocks);
  s.splits = ceiling(keys, s.split_keys);
}

struct Plan {
  int64_t pieces, merges;  // merges: 0 where pieces write results themselves
  int64_t workspace;       // floats
};

Plan plan_job(Attention& job) {
  Plan plan{};
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

}  // namespace

bool cut_alike(const Attention& job, int64_t keys, int64_t rows) {
  const int64_t last = keys + rows - 1;
  return rows <= rows_at_once(job) && (last <= kLeastKeys || keys_of_a_split(keys, 1) == keys_of_a_split(last, 1));
}

bool attend(const AttentionKernels& kernels, Attention& job, Work work, int threads, Workspace& workspace) {
  const Plan plan = plan_job(job);  // each time: it costs next to nothing
  if (plan.workspace > workspace.floats) {
    workspace.memory = allocate(size_t(plan.workspace) * sizeof(float));
    workspace.floats = workspace.memory ? plan.workspace : 0;
    if (!workspace.memory) return false;
  }
  job.workspace = reinterpret_cast<float*>(workspace.memory.get());
  for_each(work, threads, plan.pieces, [&](int64_t i) { kernels.run(job, i); });
  for_each(work, plan.merges < 8 ? 1 : threads, plan.merges, [&](int64_t i) { kernels.merge(job, i); });
  return true;
}

}  // namespace minimemo

using namespace minimemo;

// The whole job; its structs take `bytes` bytes. Returns 0, 1 without memory, 2 where the caller's structs are others.
EXPORT int minimemo_attention(int variant, Attention* job, int64_t bytes, int threads) {
  if (bytes != int64_t(sizeof(Attention) + sizeof(Segment))) return 2;
  Workspace workspace;
  return attend(*attention_kernels(variant), *job, work_of(job->rows), threads, workspace) ? 0 : 1;
}
