#if defined(__x86_64__)
#include "format.h"
#include "target.h"
#include "transform.h"

TARGET_BEGIN(AVX2)
#include "simd_avx2.h"

namespace minimemo {
namespace {

constexpr int kRun = 4;           // quads at once
constexpr int kLargest = 15;      // of a symbol as a byte, so that the products of a run are added in 16 bits
constexpr int kStripTokens = 64;  // their bytes and sums stay in the first-level cache
static_assert(kRun * 2 * 255 * kLargest < 32768 && kQuads % kRun == 0);

// sums (tokens, kColumns) += kRun quads times 16 columns of the basis; bytes: of the first token.
INLINE void add_run(const uint8_t* packed, const int8_t* bytes, int64_t tokens, int32_t* sums) {
  __m256i basis[kRun][2];
  for (int q = 0; q < kRun; q++)
    for (int half = 0; half < 2; half++)
      basis[q][half] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed + 4 * kColumns * q) + half);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t t = 0; t < tokens; t++, bytes += kComponents, sums += kColumns) {
    __m256i x = four(bytes);
    __m256i left = _mm256_maddubs_epi16(basis[0][0], x), right = _mm256_maddubs_epi16(basis[0][1], x);
    for (int q = 1; q < kRun; q++) {
      x = four(bytes + 4 * q);
      left = _mm256_add_epi16(left, _mm256_maddubs_epi16(basis[q][0], x));
      right = _mm256_add_epi16(right, _mm256_maddubs_epi16(basis[q][1], x));
    }
    __m256i* to = reinterpret_cast<__m256i*>(sums);
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), _mm256_madd_epi16(left, ones)));
    _mm256_store_si256(to + 1, _mm256_add_epi32(_mm256_load_si256(to + 1), _mm256_madd_epi16(right, ones)));
  }
}

// c (tokens, kColumns) += a group of loud components times the tile's columns of the basis.
void add_group(const InverseTransform& job, const Spread& spread, int64_t tile, int64_t group, float* c) {
  const int64_t at = tile * spread.groups + group;
  const uint8_t* packed = job.packed + at * kComponents * kColumns;
  Floats scales[4];
  for (int v = 0; v < 4; v++) scales[v] = load_floats(job.scales + at * kColumns + v * kLanes);
  const int quads = quads_of(job, group);
  for (int64_t first = 0; first < job.tokens; first += kStripTokens) {
    const int64_t tokens = job.tokens - first < kStripTokens ? job.tokens - first : kStripTokens;
    const int8_t* bytes = spread.bytes + (group * job.tokens + first) * kComponents;
    alignas(32) int32_t sums[kStripTokens * kColumns];
    for (int64_t t = 0; t < tokens; t++)
      for (int i = 0; i < kColumns; i++) sums[t * kColumns + i] = -spread.sums[group * job.tokens + first + t];
    for (int q = 0; q < quads; q += kRun)
      for (int half = 0; half < 2; half++)
        add_run(packed + 4 * kColumns * q + 64 * half, bytes + 4 * q, tokens, sums + 16 * half);
    float* to = c + first * kColumns;
    for (int64_t i = 0; i < tokens * kColumns; i += kLanes) {
      const Floats product = _mm256_cvtepi32_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(sums + i)));
      store(to + i, fused_add(product, scales[i / kLanes % 4], load_floats(to + i)));
    }
  }
}

}  // namespace
}  // namespace minimemo

#include "transform_piece.h"
TARGET_END

namespace minimemo {
Inverse avx2_inverse() { return {run_piece, kLargest}; }
}  // namespace minimemo
#endif
