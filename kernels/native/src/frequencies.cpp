// Tokens of a block <-> frequencies: every group of a few tokens times one small matrix, number by number.
//
// Sums are taken in the order of the tokens, each product rounded before it is added: every instruction set, any number
// of threads and the fallback in kernels/transform.py give the same bits, so that a document gives the same file.
#include "format.h"
#include "threads.h"

using namespace minimemo;

// matrix (group, group); x: `planes` of (groups * group, columns), plane_stride numbers apart. Returns 0, or 1 for a
// group that is too large. Every pointer and shape but that is the caller's word.
EXPORT int minimemo_frequencies(int variant, const float* matrix, int64_t group, float* x, int64_t planes,
                                int64_t plane_stride, int64_t groups, int64_t columns, int threads) {
  const Kernels& kernels = *runnable(variant);
  if (group < 1 || group > kernels.max_group) return 1;
  for_each(Work::kLong, threads, planes * groups, [&](int64_t at) {
    kernels.multiply_group(matrix, group, x + at / groups * plane_stride + at % groups * group * columns, columns);
  });
  return 0;
}
