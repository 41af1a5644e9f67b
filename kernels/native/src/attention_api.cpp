// The C functions of attention that Python calls through ctypes.
#include <atomic>
#include <cstdlib>

#include "attention.h"
#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace minimemo;

// The name of attention's variant 0, 1, 2, 3 if this processor runs it, else null.
EXPORT const char* minimemo_attention_variant(int variant) {
  const AttentionKernels* kernels = attention_kernels(variant);
  return kernels && (variant == 0 || kernels != attention_kernels(variant - 1)) ? kernels->name : nullptr;
}

// The whole job; its structs take `bytes` bytes. Returns 0, 1 without memory, 2 where the caller's structs are others.
EXPORT int minimemo_attention(int variant, Attention* job, int64_t bytes, int threads) {
  if (bytes != int64_t(sizeof(Attention) + sizeof(Segment))) return 2;
  const AttentionKernels& kernels = *attention_kernels(variant);
  const AttentionPlan plan = plan_attention(*job);
  void* memory = nullptr;
  if (plan.workspace > 0 && posix_memalign(&memory, 64, size_t(plan.workspace) * sizeof(float))) return 1;
  job->workspace = static_cast<float*>(memory);
  const Work work = work_of(job->rows);
  for_each(work, threads, plan.pieces, [&](int64_t i) { kernels.run(*job, i); });
  for_each(work, threads, plan.merges, [&](int64_t i) { kernels.merge(*job, i); });
  std::free(memory);
  return 0;
}

// All groups of the dense segment `from` -> `to`, from its group `first` on. Returns what pack_group returns.
EXPORT int minimemo_pack_kv(const Segment* from, const Segment* to, int kv_heads, int64_t first, int dim, int threads) {
  const int64_t groups = from->tokens / kKeys;
  std::atomic<int> wrong{0};
  for_each(Work::kLong, threads, kv_heads * groups, [&](int64_t i) {
    const int found = pack_group(*from, *to, int(i / groups), i % groups, first + i % groups, dim);
    if (found) wrong = found;
  });
  return wrong;
}
