// Tokens of a block <-> frequencies: every group of a few tokens times one small matrix, number by number.
//
// Sums are taken in the order of the tokens, each product rounded before it is added: every instruction set, any number
// of threads and the fallback in kernels/transform.py give the same bits, so that a document gives the same file.
#include <cstring>

#include "base.h"
#include "format.h"
#include "threads.h"

namespace minimemo {
namespace {

constexpr int64_t kMaxGroup = 64, kWide = 32;  // tokens of a group, numbers of a token at a time

// x (group, columns) in place: row k becomes the sum over t of matrix[k][t] * x[t].
INLINE void multiply_group(const float* matrix, int64_t group, float* x, int64_t columns) {
  float taken[kMaxGroup][kWide] = {};
  for (int64_t at = 0; at < columns; at += kWide) {
    const size_t bytes = size_t(columns - at < kWide ? columns - at : kWide) * sizeof(float);
    for (int64_t t = 0; t < group; t++) std::memcpy(taken[t], x + t * columns + at, bytes);
    for (int64_t k = 0; k < group; k++) {
      float sums[kWide] = {};
      for (int64_t t = 0; t < group; t++) {
        const float factor = matrix[k * group + t];
        for (int64_t i = 0; i < kWide; i++) sums[i] += factor * taken[t][i];
      }
      std::memcpy(x + k * columns + at, sums, bytes);
    }
  }
}

using Multiply = void (*)(const float*, int64_t, float*, int64_t);

void portable(const float* matrix, int64_t group, float* x, int64_t columns) {
  multiply_group(matrix, group, x, columns);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void avx2(const float* matrix, int64_t group, float* x, int64_t columns) {
  multiply_group(matrix, group, x, columns);
}
#endif

Multiply multiply_of(int variant) {
#if defined(__x86_64__)
  if (variant >= 1) return avx2;
#endif
  return portable;
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// matrix (group, group); x: `planes` of (groups * group, columns), plane_stride numbers apart. Returns 0, or 1 for a
// group that is too large. Every pointer and shape but that is the caller's word.
EXPORT int minimemo_frequencies(int variant, const float* matrix, int64_t group, float* x, int64_t planes,
                                int64_t plane_stride, int64_t groups, int64_t columns, int threads) {
  if (group < 1 || group > kMaxGroup) return 1;
  const Multiply multiply = multiply_of(variant);
  for_each(Work::kLong, threads, planes * groups, [&](int64_t at) {
    multiply(matrix, group, x + at / groups * plane_stride + at % groups * group * columns, columns);
  });
  return 0;
}
