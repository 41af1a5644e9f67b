// One product of quantized activations with packed matrices of one width, laid one below the other.
#pragma once

#include "format.h"
#include "memory.h"
#include "threads.h"

namespace minimemo {

constexpr int kMaxParts = 16;  // matrices of one product

class Product {
 public:
  // The matrices are read through, not copied. `threads` decides how finely the work is cut, not what comes out.
  Product(const Kernels& kernels, const uint8_t* const* matrices, int count, Numbers numbers, int threads);

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

  // Rows of one pass.
  int64_t pass() const { return many_ ? kernels_.many_rows : kMaxRows; }

  // Of memory for n rows of activations (of one pass at a time).
  size_t bytes(int64_t n);

  // out (n, rows) = x (n, columns) times the matrices' transposes, plus bias (rows,) or null, in `memory`.
  void run(uint8_t* memory, Work work, const float* x, int64_t n, const float* bias, float* out);

  // The same in steps: everything below works in `memory`, for n <= pass() rows.
  void bind(uint8_t* memory, int64_t n);

  // x (n, columns). The second form rounds columns first .. last - 1, multiples of kBlock; when all are, call sum().
  void quantize(Work work, const float* x);
  void quantize_columns(const float* x, int64_t first, int64_t last);
  void sum();

  void multiply(Work work, const float* bias, float* out) const;

  // Where activations are rounded to bfloat16, `many` of them: rows first .. last - 1 of one matrix, multiples of kTile
  // among its own, to out (n, stride); and x (n, stride) is columns first .. last - 1, multiples of kBlock.
  bool many() const { return many_; }
  void multiply_rows(int64_t first, int64_t last, float* out, int64_t stride) const;
  void round_columns(const float* x, int64_t stride, int64_t first, int64_t last);

  // Of a product of one matrix: only its tiles first .. last - 1, on the caller's thread.
  void multiply_tiles(int64_t first, int64_t last, float* out) const;

 private:
  struct Part {
    const uint8_t* matrix;
    Header h;
    int64_t first_row;           // among the outputs
    int64_t chunk, first_chunk;  // tiles of a chunk of work; chunks of the parts before
    int32_t* zero;
    float* offset;
  };

  size_t cut(uint8_t* memory);
  void sum_groups(const Part& part) const;

  const Kernels& kernels_;
  const bool many_;
  const int threads_;
  Part parts_[kMaxParts];
  int count_;
  int64_t rows_ = 0, columns_, chunks_ = 0;
  bool bytes_ = false, words_ = false;
  Activations x_{};
};

}  // namespace minimemo
