// The C functions that Python calls through ctypes: checks of the processor, division of work among threads.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "native.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace minimemo {
namespace {

constexpr int kAbi = 3;        // counts changes of the functions below
constexpr int kMaxParts = 16;  // matrices of one product
constexpr int kShortRows = 16;  // activation rows, or rows to expand, up to which work is short

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
  if (variant == 3) return runnable(2) && __builtin_cpu_supports("avx512bf16") ? avx512bf16_kernels() : nullptr;
#endif
  return variant == 0 ? portable_kernels() : nullptr;
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<uint8_t, FreeDeleter>;

// Hands out 64-byte aligned pieces of one allocation; first counts them, then, with memory, cuts them.
struct Cutter {
  uint8_t* at;
  size_t used = 0;
  template <typename T>
  T* take(int64_t count) {
    T* piece = at ? reinterpret_cast<T*>(at + used) : nullptr;
    used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

struct Part {
  const uint8_t* matrix;
  Header h;
  int64_t first_row;          // among the outputs
  int64_t chunk, first_chunk;  // tiles of a chunk of work; chunks of the parts before
  int32_t* zero;
  float* offset;
};

struct Product {
  Part parts[kMaxParts];
  int count = 0;
  Activations x{};

  size_t cut(uint8_t* memory, bool want_bytes, bool want_words) {
    Cutter cutter{memory};
    const int64_t cells = x.blocks * x.n;
    if (want_bytes) x.bytes = cutter.take<int8_t>(cells * kBlock * (x.fine ? 2 : 1));
    if (want_words) x.words = cutter.take<int16_t>(cells * kBlock);
    x.scales = cutter.take<float>(cells);
    x.sums = cutter.take<int32_t>(cells * 2);
    for (int p = 0; p < count; p++) {
      const int64_t groups = cells * (kBlock / parts[p].h.group);
      parts[p].zero = cutter.take<int32_t>(groups);
      parts[p].offset = parts[p].h.offset_kind ? cutter.take<float>(groups) : nullptr;
    }
    return cutter.used;
  }

  // What all tiles of a part need to know of the activations.
  void sum_groups(Part& part) const {
    const int n = x.n, per = kBlock / part.h.group;
    for (int64_t block = 0; block < x.blocks; block++)
      for (int g = 0; g < per; g++)
        for (int r = 0; r < n; r++) {
          const int32_t* sums = x.sums + block * 2 * n + r;
          const int32_t sum = per == 2 ? sums[g * n] : sums[0] + sums[n];
          const int64_t at = (block * per + g) * n + r;
          part.zero[at] = part.h.zero * sum;
          if (part.offset) part.offset[at] = x.scales[block * n + r] * float(sum);
        }
  }
};

}  // namespace
}  // namespace minimemo

using namespace minimemo;

EXPORT int minimemo_abi() { return kAbi; }

// Before anything else; `parallel` as in threads.h.
EXPORT void minimemo_start(void* parallel) { start_threads(parallel); }

// The name of variant 0 .. 3 if this processor runs it, else null.
EXPORT const char* minimemo_variant(int variant) {
  const Kernels* kernels = runnable(variant);
  return kernels ? kernels->name : nullptr;
}

// Decides on the form of a matrix: codes (rows, columns), scales and offsets (rows, columns / group). Returns the bytes
// that it will take; `header` receives 64 bytes for minimemo_pack.
EXPORT int64_t minimemo_plan(const int8_t* codes, const float* scales, const float* offsets, int64_t rows, int64_t columns,
                             int group, void* header) {
  const Header h = plan(codes, scales, offsets, rows, columns, group);
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
  const Kernels& kernels = *runnable(variant);
  Product product;
  product.count = count;
  bool want_bytes = false, want_words = false;
  int64_t rows = 0, chunks = 0;
  for (int p = 0; p < count; p++) {
    Part& part = product.parts[p];
    part.matrix = matrices[p];
    std::memcpy(&part.h, matrices[p], sizeof(Header));
    part.first_row = rows;
    rows += part.h.rows;
    // A quarter of a thread's share, 32 to 256 KiB of codes: neighbouring reads for the prefetcher (two threads, GB/s:
    // 26 in pieces of 16 KiB, 33 of 64, 35 of 256), yet enough pieces to even out threads that are disturbed.
    const int64_t codes = codes_bytes(part.h), share = codes / (4 * std::max(threads, 1));
    part.chunk = std::max<int64_t>(1, std::clamp<int64_t>(share, 32768, 262144) * tiles_of(part.h) / std::max<int64_t>(codes, 1));
    part.first_chunk = chunks;
    chunks += (tiles_of(part.h) + part.chunk - 1) / part.chunk;
    (kernels.meets_bytes(part.h.bits) ? want_bytes : want_words) = true;
  }
  if (count == 0 || n == 0) return 0;
  const int64_t columns = product.parts[0].h.columns;
  Activations& a = product.x;
  a.blocks = blocks_of(product.parts[0].h);
  a.fine = fine != 0;
  a.n = int(std::min<int64_t>(n, kMaxRows));
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, product.cut(nullptr, want_bytes, want_words) + 64)) return 1;
  const Memory owner(static_cast<uint8_t*>(memory));

  const Work work = n > kShortRows ? Work::kLong : Work::kShort;
  for (int64_t row = 0; row < n; row += kMaxRows) {
    a.n = int(std::min<int64_t>(n - row, kMaxRows));
    product.cut(owner.get(), want_bytes, want_words);
    constexpr int kRows = 8;
    for_each(work, a.n * columns < 32768 ? 1 : threads, (a.n + kRows - 1) / kRows, [&](int64_t i) {
      kernels.quantize(x + row * columns, columns, int(i) * kRows, std::min(int(i + 1) * kRows, a.n), a);
    });
    for (int p = 0; p < count; p++) product.sum_groups(product.parts[p]);
    for_each(work, threads, chunks, [&](int64_t i) {
      int p = count - 1;
      while (product.parts[p].first_chunk > i) p--;
      const Part& part = product.parts[p];
      const int64_t tile = (i - part.first_chunk) * part.chunk;
      kernels.dot(part.matrix, a, {part.zero, part.offset}, tile, std::min(tile + part.chunk, tiles_of(part.h)),
                  out + row * rows + part.first_row, rows, bias ? bias + part.first_row : nullptr);
    });
  }
  return 0;
}

// Rows of one matrix as floats, or as bfloat16: ids[0 .. count - 1], or first .. first + count - 1 where ids is null.
EXPORT void minimemo_expand(int variant, const uint8_t* matrix, const int64_t* ids, int64_t first, int64_t count,
                            void* out, int bfloat16, int64_t stride, int threads) {
  const Kernels& kernels = *runnable(variant);
  const int64_t chunk = 4 * kTile, start = ids ? 0 : first - first % kTile;  // chunks begin where tiles do
  const int64_t end = ids ? count : first + count;
  for_each(count > kShortRows ? Work::kLong : Work::kShort, threads, (end - start + chunk - 1) / chunk, [&](int64_t i) {
    const int64_t from = std::max(start + i * chunk, ids ? 0 : first), to = std::min(start + (i + 1) * chunk, end);
    const int64_t* chosen = ids ? ids + from : nullptr;
    const int64_t at = (from - (ids ? 0 : first)) * stride;
    if (bfloat16)
      kernels.expand_bfloat16(matrix, chosen, from, to - from, static_cast<uint16_t*>(out) + at, stride);
    else
      kernels.expand(matrix, chosen, from, to - from, static_cast<float*>(out) + at, stride);
  });
}

// out and lse of `a` (attention.h). Every pointer and stride is the caller's word.
EXPORT void minimemo_attention(int variant, const Attention* a, int threads) {
  attention(*runnable(variant), *a, a->tokens > kFewTokens ? Work::kLong : Work::kShort, threads);
}
