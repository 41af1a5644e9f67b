// Which variant runs here, and the smallest of the C functions that Python calls through ctypes.
#include <algorithm>
#include <cstdlib>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "attention.h"
#include "format.h"
#include "threads.h"

namespace minimemo {
namespace {

constexpr int kAbi = 15;  // counts changes of the exported functions

}  // namespace

const Kernels* runnable(int variant) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (variant == 1)  // every processor with AVX2 has F16C, which older Clangs cannot ask for
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2_kernels() : nullptr;
  if (variant == 2)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")
               ? avx512_kernels()
               : nullptr;
#if defined(MINIMEMO_AMX)
  if (variant == 3)
    return runnable(2) && __builtin_cpu_supports("avx512bf16") && may_use_tiles() ? amx_kernels() : nullptr;
#endif
#endif
  return variant == 0 ? portable_kernels() : nullptr;
}

const AttentionKernels* attention_kernels(int most) {
#if defined(MINIMEMO_AMX)
  if (most >= 4 && runnable(3)) return amx_attention();
#endif
#if defined(MINIMEMO_BFLOAT16)
  if (most >= 3 && runnable(2) && __builtin_cpu_supports("avx512bf16")) return avx512bf16_attention();
#endif
#if defined(__x86_64__)
  if (most >= 2 && runnable(2)) return avx512_attention();
  if (most >= 1 && runnable(1)) return avx2_attention();
#endif
  return most >= 0 ? portable_attention() : nullptr;
}

}  // namespace minimemo

using namespace minimemo;

EXPORT int minimemo_abi() { return kAbi; }

// Before anything else; `parallel` as in threads.h.
EXPORT void minimemo_start(void* parallel) {
  start_threads(parallel);
#if defined(__GLIBC__)
  // Else it raises the size from which on memory goes back to the system to 32 MB, and keeps a heap for each thread: 16
  // readers that were served took 400 MB more.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

// The name of variant 0 .. 3 if this processor runs it, else null.
EXPORT const char* minimemo_variant(int variant) {
  const Kernels* kernels = runnable(variant);
  return kernels ? kernels->name : nullptr;
}

// The name of attention's variant 0 .. 4 if this processor runs it, else null.
EXPORT const char* minimemo_attention_variant(int variant) {
  const AttentionKernels* kernels = attention_kernels(variant);
  return kernels && kernels != attention_kernels(variant - 1) ? kernels->name : nullptr;
}

// Rows of one matrix as floats, or as bfloat16: ids[0 .. count - 1], or first .. first + count - 1 where ids is null.
EXPORT void minimemo_expand(int variant, const uint8_t* matrix, const int64_t* ids, int64_t first, int64_t count,
                            void* out, int bfloat16, int64_t stride, int threads) {
  const Kernels& kernels = *runnable(variant);
  const int64_t chunk = 4 * kTile, start = ids ? 0 : first - first % kTile;  // chunks begin where tiles do
  const int64_t end = ids ? count : first + count;
  for_each(work_of(count), threads, (end - start + chunk - 1) / chunk, [&](int64_t i) {
    const int64_t from = std::max(start + i * chunk, ids ? 0 : first), to = std::min(start + (i + 1) * chunk, end);
    const int64_t* chosen = ids ? ids + from : nullptr;
    const int64_t at = (from - (ids ? 0 : first)) * stride;
    if (bfloat16)
      kernels.expand_bfloat16(matrix, chosen, from, to - from, static_cast<uint16_t*>(out) + at, stride);
    else
      kernels.expand(matrix, chosen, from, to - from, static_cast<float*>(out) + at, stride);
  });
}

// out (rows, columns) = x (rows, columns) to unit root mean square, times weight.
EXPORT void minimemo_rms_norm(int variant, const float* x, const float* weight, float eps, int64_t rows, int64_t columns,
                              float* out) {
  const Kernels& kernels = *runnable(variant);
  for (int64_t row = 0; row < rows; row++)
    kernels.rms_norm(x + row * columns, weight, eps, columns, out + row * columns);
}

// keys, values: `heads` of (tokens, dim) floats, apart by their strides; to places in a cache of floats or bfloat16, whose
// heads are cache_stride numbers apart. cosines, sines: (tokens, dim).
EXPORT void minimemo_store_turned(int variant, const float* keys, int64_t key_stride, const float* values,
                                  int64_t value_stride, const float* cosines, const float* sines, int64_t heads,
                                  int64_t tokens, int64_t dim, void* to_keys, void* to_values, int64_t cache_stride,
                                  int bfloat16, int threads) {
  const Kernels& kernels = *runnable(variant);
  for_each(Work::kLong, threads, heads, [&](int64_t h) {
    const float *k = keys + h * key_stride, *v = values + h * value_stride;
    const int64_t at = h * cache_stride;
    if (bfloat16)
      kernels.store_turned_bfloat16(k, v, cosines, sines, tokens, dim, static_cast<uint16_t*>(to_keys) + at,
                                    static_cast<uint16_t*>(to_values) + at);
    else
      kernels.store_turned(k, v, cosines, sines, tokens, dim, static_cast<float*>(to_keys) + at,
                           static_cast<float*>(to_values) + at);
  });
}
