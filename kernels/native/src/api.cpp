// The C functions that Python calls through ctypes: checks of the processor, division of work among threads.
#include <algorithm>
#include <cstring>

#include "native.h"
#include "product.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace minimemo {
namespace {

constexpr int kAbi = 12;       // counts changes of the functions below

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
#endif
  return variant == 0 ? portable_kernels() : nullptr;
}

}  // namespace minimemo

using namespace minimemo;

EXPORT int minimemo_abi() { return kAbi; }

// Before anything else; `parallel` as in threads.h.
EXPORT void minimemo_start(void* parallel) { start_threads(parallel); }

// The name of variant 0, 1, 2 if this processor runs it, else null.
EXPORT const char* minimemo_variant(int variant) {
  const Kernels* kernels = runnable(variant);
  return kernels ? kernels->name : nullptr;
}

// Decides on the form of a matrix: codes (rows, columns), scales and offsets (rows, columns / group). Returns the bytes
// that it will take; `header` receives 64 bytes for minimemo_pack.
EXPORT int64_t minimemo_plan(const int8_t* codes, const float* scales, const float* offsets, int64_t rows, int64_t columns,
                             int group, void* header, int threads) {
  const Header h = plan(codes, scales, offsets, rows, columns, group, threads);
  std::memcpy(header, &h, sizeof h);
  return h.bytes;
}

// `to`: that many zeroed bytes.
EXPORT void minimemo_pack(const void* header, const int8_t* codes, const float* scales, const float* offsets, uint8_t* to,
                          int threads) {
  Header h;
  std::memcpy(&h, header, sizeof h);
  std::memcpy(to, &h, sizeof h);
  const int64_t chunk = 8;
  for_each(Work::kLong, threads, (tiles_of(h) + chunk - 1) / chunk, [&](int64_t i) {
    pack_tiles(h, codes, scales, offsets, i * chunk, std::min((i + 1) * chunk, tiles_of(h)), to);
  });
}

// Whether `bytes` bytes are a packed matrix as this code would have laid it out. Reads nothing past them.
EXPORT int minimemo_check(const uint8_t* matrix, int64_t bytes) {
  Header h;
  if (bytes < int64_t(sizeof h)) return 0;
  std::memcpy(&h, matrix, sizeof h);
  const auto kind = [](int32_t k, int32_t least) { return k >= least && k <= kTwoLevel; };
  if (h.magic != kMagic || h.rows < 0 || h.columns <= 0 || (h.group != 16 && h.group != 32) || h.columns % h.group)
    return 0;
  if (h.bits != 8 && (h.group == 16 ? h.bits != 6 : h.bits != 4 && h.bits != 5)) return 0;
  if (h.zero < 0 || h.zero > 128) return 0;
  if (!kind(h.scale_kind, kFloat) || !kind(h.offset_kind, kNone)) return 0;
  if (int64_t(h.rows) * h.columns > int64_t(1) << 40) return 0;
  Header own = h;
  lay_out(own);
  return std::memcmp(&own, &h, sizeof h) == 0 && h.bytes == bytes;
}

// out (n, all rows of the parts, one after the other) = x (n, columns) times the parts' transposes, plus bias or null.
// Returns 0, or 1 without memory.
EXPORT int minimemo_linear(int variant, const uint8_t* const* matrices, int count, const float* x, int64_t n,
                           const float* bias, float* out, int fine, int threads) {
  if (count == 0 || n == 0) return 0;
  Product product(*runnable(variant), matrices, count, fine != 0, threads);
  const Memory memory = allocate(product.bytes(n));
  if (!memory) return 1;
  const Work work = work_of(n);
  for (int64_t row = 0; row < n; row += kMaxRows) {
    product.bind(memory.get(), std::min<int64_t>(n - row, kMaxRows));
    product.quantize(work, x + row * product.columns());
    product.multiply(work, bias, out + row * product.rows());
  }
  return 0;
}

// As coarsen.
EXPORT double minimemo_coarsen(const int8_t* codes, const float* scales, const float* offsets, int64_t rows,
                               int64_t columns, int group, int8_t* rounded, float* steps, int threads) {
  return coarsen(codes, scales, offsets, rows, columns, group, rounded, steps, threads);
}

// As run_shortlist. Returns 0, or 1 without memory.
EXPORT int minimemo_shortlist(int variant, const uint8_t* coarse, const uint8_t* exact, float noise, const float* x,
                              int64_t n, float* out, int threads) {
  return run_shortlist(*runnable(variant), coarse, exact, noise, x, n, out, threads) ? 0 : 1;
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

// Returns 0, or 1 without memory. Every pointer, shape and stride is the caller's word.
EXPORT int minimemo_stack(int variant, int attention_variant, const StackModel* model, const StackCall* call) {
  return run_stack(*runnable(variant), *attention_kernels(attention_variant), *model, *call) ? 0 : 1;
}

// out (rows, columns) = x (rows, columns) to unit root mean square, times weight.
EXPORT void minimemo_rms_norm(int variant, const float* x, const float* weight, float eps, int64_t rows, int64_t columns,
                              float* out) {
  const Kernels& kernels = *runnable(variant);
  for (int64_t row = 0; row < rows; row++)
    kernels.rms_norm(x + row * columns, weight, eps, columns, out + row * columns);
}
