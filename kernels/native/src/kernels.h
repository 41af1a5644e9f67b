// The kernels, written once over the few operations of simd_*.h and compiled once an instruction set. Every variant, row
// count and thread count gives the same bits: sums inside a group are integers, and each output adds its groups in column
// order, one fused multiply-add a group.
//
// No templates of the standard library here: the linker would keep one copy of each for all variants, and a machine
// without AVX-512 could be handed the one that uses it.
#pragma once

#include <cstring>

#include "elementwise.h"
#include "unpack.h"

namespace minimemo {
namespace {

// kRows: of the activations, whose sums then stay in registers; or 0 for any number of them.
template <int kBits, int kGroup, bool kFine, int kRows>
void dot_tiles(const uint8_t* matrix, const Activations& x, const GroupSums& groups, int64_t first_tile,
               int64_t last_tile, float* out, int64_t stride, const float* bias) {
  const Header h = header_of(matrix);
  constexpr int kPer = kBlock / kGroup;  // groups of a block
  constexpr int kVectors = kTile / kLanes;
  const int n = x.n;
  const int64_t blocks = blocks_of(h), scale_bytes = param_bytes(h, h.scale_kind);
  const int64_t offset_bytes = param_bytes(h, h.offset_kind);
  alignas(64) float scales[kSuper / kGroup * kTile], offsets[kSuper / kGroup * kTile];
  for (int64_t tile = first_tile; tile < last_tile; tile++) {
    const uint8_t* codes = matrix + sizeof h + tile * blocks * (kBits * 64);
    Floats sums[(kRows ? kRows : kMaxRows) * kVectors];
    each_row<kRows * kVectors>(n * kVectors, [&](int i) INLINE_LAMBDA { sums[i] = Floats{}; });
    for (int64_t super = 0; super * (kSuper / kBlock) < blocks; super++) {
      const int64_t block0 = super * (kSuper / kBlock);
      const int64_t count = blocks - block0 < kSuper / kBlock ? blocks - block0 : kSuper / kBlock;
      decode(matrix + h.scales_at + tile * scale_bytes, h.scale_kind, kGroup, super, count * kPer, scales);
      for (int64_t b = 0; b < count; b++, codes += kBits * 64) {
        fetch_ahead<kBits>(codes);
        block_product<kBits, kGroup, kFine, kRows>(codes, scales + b * kPer * kTile, x, block0 + b,
                                                   groups.zero + (block0 + b) * kPer * n, sums);
      }
      if (!offset_bytes) continue;
      decode(matrix + h.offsets_at + tile * offset_bytes, h.offset_kind, kGroup, super, count * kPer, offsets);
      each_row<kRows>(n, [&](int r) INLINE_LAMBDA {
        for (int v = 0; v < kVectors; v++) {
          Floats sum = sums[r * kVectors + v];
          for (int64_t g = 0; g < count * kPer; g++)
            sum = fused_add(load_floats(offsets + g * kTile + v * kLanes),
                            splat(groups.offset[(block0 * kPer + g) * n + r]), sum);
          sums[r * kVectors + v] = sum;
        }
      });
    }
    const int64_t row0 = tile * kTile;
    const int rows = int(h.rows - row0 < kTile ? h.rows - row0 : kTile);
    each_row<kRows>(n, [&](int r) INLINE_LAMBDA {
      float* to = out + r * stride + row0;
      alignas(64) float lanes[kTile];
      for (int v = 0; v < kVectors; v++) store(lanes + v * kLanes, sums[r * kVectors + v]);
      for (int i = 0; i < rows; i++) to[i] = lanes[i] + (bias ? bias[row0 + i] : 0.0f);
    });
  }
}

template <int kBits, int kGroup, bool kFine>
void dot_rows(const uint8_t* matrix, const Activations& x, const GroupSums& sums, int64_t first, int64_t last,
              float* out, int64_t stride, const float* bias) {
  auto run = dot_tiles<kBits, kGroup, kFine, 0>;
  if constexpr (kRegisterRows) {
    if (x.n == 1) run = dot_tiles<kBits, kGroup, kFine, 1>;
    if (x.n == 2) run = dot_tiles<kBits, kGroup, kFine, 2>;
    if (x.n == 3) run = dot_tiles<kBits, kGroup, kFine, 3>;
    if (x.n == 4) run = dot_tiles<kBits, kGroup, kFine, 4>;
  }
  run(matrix, x, sums, first, last, out, stride, bias);
}

template <int kBits, int kGroup>
void dot_either(const uint8_t* matrix, const Activations& x, const GroupSums& sums, int64_t first, int64_t last,
                float* out, int64_t stride, const float* bias) {
  if (meets_bytes(kBits) && x.fine)  // words are of one kind
    dot_rows<kBits, kGroup, meets_bytes(kBits)>(matrix, x, sums, first, last, out, stride, bias);
  else
    dot_rows<kBits, kGroup, false>(matrix, x, sums, first, last, out, stride, bias);
}

void dot(const uint8_t* matrix, const Activations& x, const GroupSums& sums, int64_t first, int64_t last, float* out,
         int64_t stride, const float* bias) {
  const Header h = header_of(matrix);
  const auto run = h.group == 16 ? (h.bits == 6 ? dot_either<6, 16> : dot_either<8, 16>)
                   : h.bits == 4 ? dot_either<4, 32>
                   : h.bits == 5 ? dot_either<5, 32>
                                 : dot_either<8, 32>;
  run(matrix, x, sums, first, last, out, stride, bias);
}

// Blocks first_block .. last_block - 1 of rows first .. last - 1 of x (n, columns), each scaled to -127..127 or -8127..8127. 8127 = 63 * 128 + 63, the
// largest that falls into two planes of -64..63. Not a number, or infinite: the block's scale is so, and the outputs show it.
void quantize(const float* x, int64_t columns, int first, int last, int64_t first_block, int64_t last_block,
              const Activations& to) {
  const float levels = to.fine ? 8127.0f : 127.0f;
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, ties to even
  for (int r = first; r < last; r++) {
    for (int64_t block = first_block; block < last_block; block++) {
      alignas(64) float v[kBlock];
      alignas(64) int32_t q[kBlock];
      const int64_t rest = columns - block * kBlock;
      if (rest < kBlock) std::memset(v, 0, sizeof v);
      std::memcpy(v, x + r * columns + block * kBlock, size_t(rest < kBlock ? rest : kBlock) * 4);
      int32_t top = 0;  // compared as integers, not-a-numbers are the largest
      std::memcpy(q, v, sizeof q);
      for (int i = 0; i < kBlock; i++) {
        const int32_t bits = q[i] & 0x7fffffff;
        top = bits > top ? bits : top;
      }
      const float largest = float_of(uint32_t(top));
      const bool nothing = largest < 1e-30f;  // its inverse would overflow
      const float inverse = nothing ? 0.0f : levels / largest;
      for (int i = 0; i < kBlock; i++) v[i] = v[i] * inverse + rounder;
      std::memcpy(q, v, sizeof q);
      int32_t sums[2] = {0, 0};
      const int32_t finite = top < 0x7f800000 ? -1 : 0;  // what is not gives bits that mean nothing, whose sums overflow
      for (int i = 0; i < kBlock; i++) q[i] = (q[i] - 0x4b400000) & finite;  // less the rounder's own bits
      for (int i = 0; i < 16; i++) sums[0] += q[i];
      for (int i = 16; i < 32; i++) sums[1] += q[i];
      const int64_t at = block * to.n + r;
      to.scales[at] = nothing ? 0.0f : largest / levels;
      to.sums[(block * 2) * to.n + r] = sums[0];
      to.sums[(block * 2 + 1) * to.n + r] = sums[1];
      if (to.words) store_words(q, to.words + at * kBlock);
      if (!to.bytes) continue;
      int8_t* bytes = to.bytes + at * kBlock * (to.fine ? 2 : 1);
      if (!to.fine) {
        for (int i = 0; i < kBlock; i++) bytes[i] = int8_t(q[i]);
      } else {
        for (int i = 0; i < kBlock; i++) {
          const int32_t high = (q[i] + 64) >> 7;
          bytes[i] = int8_t(high);
          bytes[kBlock + i] = int8_t(q[i] - high * 128);
        }
      }
    }
  }
}

// 32 floats -> what `out` holds: floats, or bfloat16 rounded to nearest, ties to even (no NaN comes out of codes).
INLINE void store_values(const float* values, int64_t count, float* out) { std::memcpy(out, values, size_t(count) * 4); }
INLINE void store_values(const float* values, int64_t count, uint16_t* out) {
  uint32_t bits[kBlock];
  uint16_t halves[kBlock];
  std::memcpy(bits, values, sizeof bits);
  for (int i = 0; i < kBlock; i++) halves[i] = uint16_t((bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16);
  std::memcpy(out, halves, size_t(count) * 2);
}

template <int kBits, typename Out>
void expand_rows(const uint8_t* matrix, const Header& h, const int64_t* ids, int64_t first, int64_t count, Out* out,
                 int64_t stride) {
  const int64_t blocks = blocks_of(h), per_super = kSuper / kBlock;
  const int per = kBlock / h.group;
  const float zero = float(h.zero);
  alignas(64) float scales[kSuper / 16 * kTile], offsets[kSuper / 16 * kTile] = {};
  alignas(64) uint8_t bytes[kTile * kBlock];
  for (int64_t done = 0, run; done < count; done += run) {
    // The wanted rows of one tile: neighbours when a range is expanded, one when single rows are.
    const int64_t row = ids ? ids[done] : first + done, tile = row / kTile;
    const int64_t lane0 = row % kTile;
    run = ids ? 1 : (kTile - lane0 < count - done ? kTile - lane0 : count - done);
    for (int64_t block = 0; block < blocks; block++) {
      if (block % per_super == 0) {
        const int64_t super = block / per_super, left = (blocks - block) * per;
        const int64_t groups = left < per_super * per ? left : per_super * per;
        decode(matrix + h.scales_at + tile * param_bytes(h, h.scale_kind), h.scale_kind, h.group, super, groups, scales);
        if (h.offset_kind)
          decode(matrix + h.offsets_at + tile * param_bytes(h, h.offset_kind), h.offset_kind, h.group, super, groups,
                 offsets);
      }
      const uint8_t* codes = matrix + sizeof h + (tile * blocks + block) * (kBits * 64);
      for (int lane = 0; lane < kTile; lane += kLanes) {
        Bytes u[8];
        unpack<kBits>(codes + lane * 4, u);
        store_rows(u, bytes + lane * kBlock);
      }
      const int64_t left = h.columns - block * kBlock;
      for (int64_t i = 0; i < run; i++) {
        const uint8_t* stored = bytes + (lane0 + i) * kBlock;
        float values[kBlock];
        for (int half = 0; half < 2; half++) {
          const int64_t at = (block % per_super * per + half * per / 2) * kTile + lane0 + i;
          const float scale = scales[at], offset = offsets[at];
          for (int c = half * 16; c < half * 16 + 16; c++) values[c] = (float(stored[c]) - zero) * scale + offset;
        }
        store_values(values, left < kBlock ? left : kBlock, out + (done + i) * stride + block * kBlock);
      }
    }
  }
}

// Rows ids[0 .. count - 1], or first .. first + count - 1 where ids is null, as floats or bfloat16.
template <typename Out>
void expand(const uint8_t* matrix, const int64_t* ids, int64_t first, int64_t count, Out* out, int64_t stride) {
  const Header h = header_of(matrix);
  const auto run = h.bits == 4   ? expand_rows<4, Out>
                   : h.bits == 5 ? expand_rows<5, Out>
                   : h.bits == 6 ? expand_rows<6, Out>
                                 : expand_rows<8, Out>;
  run(matrix, h, ids, first, count, out, stride);
}

const Kernels kKernels = {kName, 0, meets_bytes, quantize, dot, expand<float>, expand<uint16_t>, rms_norm, gate,
                          kMaxGroup, multiply_group, round_symbols, store_turned<float>, store_turned<uint16_t>};

}  // namespace
}  // namespace minimemo
