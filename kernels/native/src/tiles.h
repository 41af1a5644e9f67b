// AMX: eight registers, tiles, of at most 16 rows of 64 bytes. Compilers do not see that loading one reads memory: what was
// written for it must be so before.
#pragma once

#include "base.h"

namespace minimemo {
namespace {

constexpr int kTileRows = 16;

// What ldtilecfg reads: rows, and bytes of a row, of each register.
struct alignas(64) Tiles {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  void shape(int tile, int its_rows, int its_bytes) {
    rows[tile] = uint8_t(its_rows);
    bytes[tile] = uint16_t(its_bytes);
  }
};

INLINE void written() { asm volatile("" ::: "memory"); }

}  // namespace
}  // namespace minimemo
