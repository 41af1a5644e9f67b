// See product.h: division of work among threads, and what all tiles of a matrix share.
#include "product.h"

#include <algorithm>
#include <cstring>

namespace minimemo {
Product::Product(const Kernels& kernels, const uint8_t* const* matrices, int count, Numbers numbers, int threads)
    : kernels_(kernels),
      many_(numbers == Numbers::kMany && kernels.many_rows > 0),
      threads_(threads),
      count_(count) {
  for (int p = 0; p < count; p++) {
    Part& part = parts_[p];
    part.matrix = matrices[p];
    part.h = header_of(matrices[p]);
    part.first_row = rows_;
    rows_ += part.h.rows;
    // A quarter of a thread's share, 32 to 256 KiB of codes: neighbouring reads for the prefetcher (two threads, GB/s:
    // 26 in pieces of 16 KiB, 33 of 64, 35 of 256), yet enough pieces to even out threads that are disturbed.
    const int64_t codes = std::max<int64_t>(codes_bytes(part.h), 1), share = codes / (4 * std::max(threads, 1));
    part.chunk = std::max<int64_t>(1, std::clamp<int64_t>(share, 32768, 131072) * tiles_of(part.h) / codes);
    if (many_) part.chunk = (part.chunk + 3) / 4 * 4;  // tiles are met by fours
    part.first_chunk = chunks_;
    chunks_ += (tiles_of(part.h) + part.chunk - 1) / part.chunk;
    (kernels.meets_bytes(part.h.bits) ? bytes_ : words_) = true;
  }
  columns_ = parts_[0].h.columns;
  x_.blocks = blocks_of(parts_[0].h);
  x_.fine = numbers == Numbers::kFine;
}

size_t Product::bytes(int64_t n) {
  x_.n = int(std::min<int64_t>(n, pass()));
  return cut(nullptr);
}

void Product::bind(uint8_t* memory, int64_t n) {
  x_.n = int(n);
  cut(memory);
}

void Product::run(uint8_t* memory, Work work, const float* x, int64_t n, const float* bias, float* out) {
  for (int64_t row = 0; row < n; row += pass()) {
    bind(memory, std::min<int64_t>(n - row, pass()));
    quantize(work, x + row * columns_);
    multiply(work, bias, out + row * rows_);
  }
}

size_t Product::cut(uint8_t* memory) {
  Cutter cutter{memory};
  const int64_t cells = x_.blocks * x_.n;
  if (many_) {
    x_.halves = cutter.take<uint16_t>(x_.blocks * ((x_.n + kTile - 1) / kTile * kTile) * kBlock);
    return cutter.used;
  }
  if (bytes_) x_.bytes = cutter.take<int8_t>(cells * kBlock * (x_.fine ? 2 : 1));
  if (words_) x_.words = cutter.take<int16_t>(cells * kBlock);
  x_.scales = cutter.take<float>(cells);
  x_.sums = cutter.take<int32_t>(cells * 2);
  for (int p = 0; p < count_; p++) {
    const int64_t groups = cells * (kBlock / parts_[p].h.group);
    parts_[p].zero = cutter.take<int32_t>(groups);
    parts_[p].offset = parts_[p].h.offset_kind ? cutter.take<float>(groups) : nullptr;
  }
  return cutter.used;
}

void Product::quantize(Work work, const float* x) {
  constexpr int kRows = 8;
  for_each(work, x_.n * columns_ < 32768 ? 1 : threads_, (x_.n + kRows - 1) / kRows, [&](int64_t i) {
    kernels_.quantize(x, columns_, int(i) * kRows, std::min(int(i + 1) * kRows, x_.n), 0, x_.blocks, x_);
  });
  sum();
}

void Product::quantize_columns(const float* x, int64_t first, int64_t last) {
  kernels_.quantize(x, columns_, 0, x_.n, first / kBlock, (last + kBlock - 1) / kBlock, x_);
}

void Product::sum() {
  if (many_) return;
  for (int p = 0; p < count_; p++) sum_groups(parts_[p]);
}

void Product::sum_groups(const Part& part) const {
  const int n = x_.n, per = kBlock / part.h.group;
  for (int64_t block = 0; block < x_.blocks; block++)
    for (int g = 0; g < per; g++)
      for (int r = 0; r < n; r++) {
        const int32_t* sums = x_.sums + block * 2 * n + r;
        const int32_t sum = per == 2 ? sums[g * n] : sums[0] + sums[n];
        const int64_t at = (block * per + g) * n + r;
        part.zero[at] = part.h.zero * sum;
        if (part.offset) part.offset[at] = x_.scales[block * n + r] * float(sum);
      }
}

void Product::multiply(Work work, const float* bias, float* out) const {
  for_each(work, threads_, chunks_, [&](int64_t i) {
    int p = count_ - 1;
    while (parts_[p].first_chunk > i) p--;
    const Part& part = parts_[p];
    const int64_t tile = (i - part.first_chunk) * part.chunk;
    kernels_.dot(part.matrix, x_, {part.zero, part.offset}, tile, std::min(tile + part.chunk, tiles_of(part.h)),
                 out + part.first_row, rows_, bias ? bias + part.first_row : nullptr);
  });
}

void Product::multiply_rows(int64_t first, int64_t last, float* out, int64_t stride) const {
  int p = count_ - 1;
  while (parts_[p].first_row > first) p--;
  const int64_t own = first - parts_[p].first_row;
  kernels_.dot(parts_[p].matrix, x_, {}, own / kTile, (own + last - first) / kTile, out - own, stride, nullptr);
}

void Product::round_columns(const float* x, int64_t stride, int64_t first, int64_t last) {
  Activations to = x_;
  to.halves += first / kBlock * kBlock * kTile;
  kernels_.quantize(x, stride, 0, x_.n, 0, (last - first) / kBlock, to);
}

void Product::multiply_tiles(int64_t first, int64_t last, float* out) const {
  const Part& part = parts_[0];
  kernels_.dot(part.matrix, x_, {part.zero, part.offset}, first, last, out, rows_, nullptr);
}

}  // namespace minimemo

using namespace minimemo;

// out (n, all rows of the parts, one after the other) = x (n, columns) times the parts' transposes, plus bias or null.
// Returns 0, or 1 without memory.
EXPORT int minimemo_linear(int variant, const uint8_t* const* matrices, int count, const float* x, int64_t n,
                           const float* bias, float* out, int fine, int threads) {
  if (count == 0 || n == 0) return 0;
  Product product(*runnable(variant), matrices, count, numbers_of(fine != 0, n), threads);
  const Memory memory = allocate(product.bytes(n));
  if (!memory) return 1;
  product.run(memory.get(), work_of(n), x, n, bias, out);
  return 0;
}
