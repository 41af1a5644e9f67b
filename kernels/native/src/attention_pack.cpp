// Dense keys and values -> packed ones (kernels/formats.py has the format). Plain C++, the same bits as
// kernels/torch_ops.py.
#include <atomic>

#include "attention.h"

namespace minimemo {
namespace {

struct Grid {
  float scale, low;
  uint16_t scale_half, low_half;
};

Grid grid_of(float least, float most, float top) {
  Grid grid;
  grid.scale_half = to_half((most - least) / top);
  grid.low_half = to_half(least);
  grid.scale = from_half(grid.scale_half);
  grid.low = from_half(grid.low_half);
  return grid;
}

INLINE float code_of(float x, float scale, float low, float top) {
  const float place = scale > 0 ? (x - low) / scale : 0;
  const float inside = place < 0 ? 0 : place > top ? top : place;
  return (inside + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: to the nearest integer
}

// Whether all of the row is finite and within float16.
bool widen_row(const Segment& from, const void* base, int64_t at, int dim, float* to) {
  float largest = 0;
  bool good = true;
  for (int d = 0; d < dim; d++) {
    if (from.store == kStoreFloat)
      to[d] = static_cast<const float*>(base)[at + d];
    else
      to[d] = from_bfloat16(static_cast<const uint16_t*>(base)[at + d]);
    largest = __builtin_fabsf(to[d]) > largest ? __builtin_fabsf(to[d]) : largest;
    good &= to[d] == to[d];
  }
  return good && largest <= 65504.0f;
}

void store_codes(const float* codes, bool four_bits, int dim, uint8_t* to) {
  if (!four_bits) {
    for (int d = 0; d < dim; d++) to[d] = uint8_t(int32_t(codes[d]));
    return;
  }
  const int half = dim / 2;
  for (int i = 0; i < half; i++) to[i] = uint8_t(int32_t(codes[i]) | int32_t(codes[i + half]) << 4);
}

// One group of 64 tokens of one kv head: number `group` of the dense segment `from` -> number `to_group` of the packed
// segment `to`. Returns 0, or 1 (keys) or 2 (values) where numbers are not finite or beyond half precision.
int pack_group(const Segment& from, const Segment& to, int head, int64_t group, int64_t to_group, int dim) {
  const bool four = to.store == kStorePacked4;
  const float top = four ? 15.0f : 255.0f;
  const int width = four ? dim / 2 : dim;
  alignas(64) float lines[kKeys][kMaxDim], scale[kMaxDim], low[kMaxDim], least[kMaxDim], most[kMaxDim], codes[kMaxDim];
  const int64_t key = group * kKeys, to_key = to_group * kKeys;

  for (int t = 0; t < kKeys; t++) {
    if (!widen_row(from, from.keys, head * from.key_stride + (key + t) * dim, dim, lines[t])) return 1;
    for (int d = 0; d < dim; d++) {
      least[d] = t == 0 || lines[t][d] < least[d] ? lines[t][d] : least[d];
      most[d] = t == 0 || lines[t][d] > most[d] ? lines[t][d] : most[d];
    }
  }
  const int64_t at = head * to.key_param_stride + to_group * dim;
  for (int d = 0; d < dim; d++) {
    const Grid grid = grid_of(least[d], most[d], top);
    scale[d] = grid.scale, low[d] = grid.low;
    const_cast<uint16_t*>(to.key_scale)[at + d] = grid.scale_half;
    const_cast<uint16_t*>(to.key_low)[at + d] = grid.low_half;
  }
  for (int t = 0; t < kKeys; t++) {
    for (int d = 0; d < dim; d++) codes[d] = code_of(lines[t][d], scale[d], low[d], top);
    uint8_t* line = static_cast<uint8_t*>(const_cast<void*>(to.keys)) + head * to.key_stride + (to_key + t) * width;
    store_codes(codes, four, dim, line);
  }

  for (int t = 0; t < kKeys; t++) {
    float* x = lines[0];
    if (!widen_row(from, from.values, head * from.value_stride + (key + t) * dim, dim, x)) return 2;
    float small = x[0], large = x[0];
    for (int d = 1; d < dim; d++) {
      small = x[d] < small ? x[d] : small;
      large = x[d] > large ? x[d] : large;
    }
    const Grid grid = grid_of(small, large, top);
    const_cast<uint16_t*>(to.value_scale)[head * to.value_param_stride + to_key + t] = grid.scale_half;
    const_cast<uint16_t*>(to.value_low)[head * to.value_param_stride + to_key + t] = grid.low_half;
    for (int d = 0; d < dim; d++) codes[d] = code_of(x[d], grid.scale, grid.low, top);
    uint8_t* line = static_cast<uint8_t*>(const_cast<void*>(to.values)) + head * to.value_stride + (to_key + t) * width;
    store_codes(codes, four, dim, line);
  }
  return 0;
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

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
