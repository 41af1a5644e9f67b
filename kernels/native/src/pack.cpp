// Codes, scales and offsets -> the packed form of format.h, without loss.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "format.h"
#include "threads.h"

namespace minimemo {
namespace {

struct Binary {  // value = digits * 2^exponent, digits odd or 0; not of infinities and NaN
  int32_t digits;
  int exponent;
};

bool split(float value, Binary* to) {
  const uint32_t bits = bits_of(value), raised = bits >> 23 & 255, fraction = bits & 0x7fffff;
  if (raised == 255) return false;
  int32_t digits = int32_t(raised ? fraction | 0x800000 : fraction);
  int exponent = int(raised ? raised : 1) - 150;
  if (digits) {
    const int zeros = __builtin_ctz(uint32_t(digits));
    digits >>= zeros, exponent += zeros;
  }
  *to = {bits >> 31 ? -digits : digits, exponent};
  return true;
}

bool is_half(float value, uint16_t* half) {
  if (!(std::fabs(value) <= 65504.0f)) return false;
  *half = to_half(value);
  return from_half(*half) == value;
}

// `count` values as small[i] * *factor, exactly. Every value is an integer times one power of two; their greatest common
// divisor is the factor. It is negative where one of the integers is to be -128 and not 128: the scales of q6_K are
// rounded so that the largest is just that.
bool is_two_level(const float* values, int count, float* factor, int8_t* small) {
  Binary parts[kSuper / 16];
  int lowest = 1 << 20;
  for (int i = 0; i < count; i++) {
    if (!split(values[i], parts + i)) return false;
    if (parts[i].digits) lowest = std::min(lowest, parts[i].exponent);
  }
  int32_t divisor = 0, largest = 0;
  for (int i = 0; i < count; i++) {
    int32_t& digits = parts[i].digits;
    if (digits == 0) continue;
    if (parts[i].exponent - lowest > 7) return false;  // more than 128 times the smallest
    digits *= 1 << (parts[i].exponent - lowest);  // of 24 bits, so 31 hold it
    divisor = std::gcd(divisor, digits);
    largest = std::max(largest, digits);
  }
  if (divisor && largest / divisor > 127) divisor = -divisor;
  *factor = divisor ? std::ldexp(float(divisor), lowest) : 0.0f;
  for (int i = 0; i < count; i++) {
    const int32_t multiple = divisor ? parts[i].digits / divisor : 0;
    if (multiple > 127 || multiple < -128) return false;
    small[i] = int8_t(multiple);
    if (float(small[i]) * *factor != values[i]) return false;  // the factor may lie outside of float's range
  }
  return true;
}

// Whether `holds(row)` for every row.
template <typename Check>
bool every_row(int64_t rows, int threads, Check holds) {
  std::atomic<bool> all{true};
  const int64_t chunk = 64;
  for_each(Work::kLong, threads, (rows + chunk - 1) / chunk, [&](int64_t i) {
    for (int64_t row = i * chunk; row < std::min((i + 1) * chunk, rows) && all.load(std::memory_order_relaxed); row++)
      if (!holds(row)) all.store(false, std::memory_order_relaxed);
  });
  return all;
}

int32_t narrowest(const float* values, int64_t rows, int64_t groups, int group, int threads) {
  const bool halves = every_row(rows, threads, [&](int64_t row) {
    uint16_t half;
    for (int64_t g = 0; g < groups; g++)
      if (!is_half(values[row * groups + g], &half)) return false;
    return true;
  });
  if (halves) return kHalf;
  const bool two_levels = every_row(rows, threads, [&](int64_t row) {
    float factor;
    int8_t small[kSuper / 16];
    const int64_t per_super = kSuper / group;
    for (int64_t g = 0; g < groups; g += per_super)
      if (!is_two_level(values + row * groups + g, int(std::min(per_super, groups - g)), &factor, small)) return false;
    return true;
  });
  return two_levels ? kTwoLevel : kFloat;
}

void pack_params(const float* values, int64_t row0, int64_t rows, int64_t groups, const Header& h, int32_t kind,
                 uint8_t* to) {
  const int64_t per_super = kSuper / h.group;
  for (int64_t i = 0; i < rows; i++) {
    const float* row = values + (row0 + i) * groups;
    for (int64_t g = 0; g < groups; g++) {
      if (kind == kFloat) std::memcpy(to + (g * kTile + i) * 4, row + g, 4);
      if (kind == kHalf) {
        uint16_t half = 0;
        is_half(row[g], &half);
        std::memcpy(to + (g * kTile + i) * 2, &half, 2);
      }
    }
    for (int64_t g = 0; kind == kTwoLevel && g < groups; g += per_super) {
      uint8_t* at = to + g / per_super * (kTile * 4 + per_super * kTile);
      const int count = int(std::min(per_super, groups - g));
      float factor = 0;
      int8_t small[kSuper / 16];
      is_two_level(row + g, count, &factor, small);
      std::memcpy(at + i * 4, &factor, 4);
      for (int s = 0; s < count; s++) at[kTile * 4 + s * kTile + i] = uint8_t(small[s]);
    }
  }
}

// 8 vectors of 64 stored codes -> `bits` vectors; the inverse of unpack() in kernels.h.
void pack_block(const uint8_t u[8][64], int bits, uint8_t* to) {
  if (bits == 8) std::memcpy(to, u, 512);
  for (int i = 0; i < 64; i++) {
    if (bits == 4)
      for (int j = 0; j < 4; j++) to[j * 64 + i] = uint8_t(u[j][i] | u[j + 4][i] << 4);
    if (bits == 5) {
      for (int j = 0; j < 3; j++) to[j * 64 + i] = uint8_t(u[j][i] | u[5 + j][i] << 5);
      to[3 * 64 + i] = uint8_t(u[3][i] | (u[5][i] & 24) << 3 | (u[7][i] & 8) << 2);
      to[4 * 64 + i] = uint8_t(u[4][i] | (u[6][i] & 24) << 3 | (u[7][i] & 16) << 1);
    }
    if (bits == 6)
      for (int j = 0; j < 2; j++)
        for (int k = 0; k < 3; k++)
          to[(j * 3 + k) * 64 + i] = uint8_t(u[j * 4 + k][i] | (u[j * 4 + 3][i] >> 2 * k & 3) << 6);
  }
}

Header plan(const int8_t* codes, const float* scales, const float* offsets, int64_t rows, int64_t columns, int group,
            int threads) {
  const int64_t chunks = std::min<int64_t>(rows, 64);
  std::vector<std::pair<int8_t, int8_t>> ranges(static_cast<size_t>(chunks));
  for_each(Work::kLong, threads, chunks, [&](int64_t i) {
    const int8_t *from = codes + rows * i / chunks * columns, *to = codes + rows * (i + 1) / chunks * columns;
    int8_t least = 0, most = 0;
    for (; from < to; from++) {
      least = std::min(least, *from);
      most = std::max(most, *from);
    }
    ranges[size_t(i)] = {least, most};
  });
  int8_t low = 0, high = 0;
  for (const auto& [least, most] : ranges) {
    low = std::min(low, least);
    high = std::max(high, most);
  }
  const int span = high - low;
  const int64_t groups = columns / group;
  Header h{};
  h.magic = kMagic;
  h.rows = int32_t(rows);
  h.columns = int32_t(columns);
  h.group = group;
  h.bits = group == 16 ? (span < 64 ? 6 : 8) : span < 16 ? 4 : span < 32 ? 5 : 8;
  h.zero = -low;
  h.scale_kind = narrowest(scales, rows, groups, group, threads);
  h.offset_kind = offsets ? narrowest(offsets, rows, groups, group, threads) : int32_t(kNone);
  lay_out(h);
  return h;
}

void pack_tile(const Header& h, const int8_t* codes, const float* scales, const float* offsets, int64_t tile,
               uint8_t* to) {
  const int64_t blocks = blocks_of(h), groups = h.columns / h.group;
  const int64_t row0 = tile * kTile, rows = std::min<int64_t>(kTile, h.rows - row0);
  for (int64_t block = 0; block < blocks; block++) {
    uint8_t u[8][64] = {};
    const int64_t width = std::min<int64_t>(kBlock, h.columns - block * kBlock);
    for (int64_t r = 0; r < rows; r++) {
      uint8_t line[kBlock] = {};
      const int8_t* from = codes + (row0 + r) * h.columns + block * kBlock;
      for (int64_t c = 0; c < width; c++) line[c] = uint8_t(from[c] + h.zero);
      for (int j = 0; j < 8; j++) std::memcpy(&u[j][4 * r], line + 4 * j, 4);
    }
    pack_block(u, h.bits, to + sizeof h + (tile * blocks + block) * block_bytes(h));
  }
  pack_params(scales, row0, rows, groups, h, h.scale_kind, to + h.scales_at + tile * param_bytes(h, h.scale_kind));
  if (offsets)
    pack_params(offsets, row0, rows, groups, h, h.offset_kind, to + h.offsets_at + tile * param_bytes(h, h.offset_kind));
}

}  // namespace
}  // namespace minimemo

using namespace minimemo;

// Decides on the form of a matrix: codes (rows, columns), scales and offsets (rows, columns / group). Returns the bytes
// that it will take; `header` receives 64 bytes for minimemo_pack.
EXPORT int64_t minimemo_plan(const int8_t* codes, const float* scales, const float* offsets, int64_t rows, int64_t columns,
                             int group, void* header, int threads) {
  const Header h = plan(codes, scales, offsets, rows, columns, group, threads);
  std::memcpy(header, &h, sizeof h);
  return h.bytes;
}

// `to`: that many zeroed bytes.
EXPORT void minimemo_pack(const uint8_t* header, const int8_t* codes, const float* scales, const float* offsets, uint8_t* to,
                          int threads) {
  const Header h = header_of(header);
  std::memcpy(to, &h, sizeof h);
  for_each(Work::kLong, threads, tiles_of(h),
           [&](int64_t tile) { pack_tile(h, codes, scales, offsets, tile, to); });
}

// Whether `bytes` bytes are a packed matrix as this code would have laid it out. Reads nothing past them.
EXPORT int minimemo_check(const uint8_t* matrix, int64_t bytes) {
  if (bytes < int64_t(sizeof(Header))) return 0;
  const Header h = header_of(matrix);
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
