// What api.cpp and the files that do its work share.
#pragma once

#include "attention.h"
#include "format.h"
#include "stack.h"
#include "threads.h"

namespace minimemo {

// Fills in where scales and offsets lie, 64-byte aligned, and the size of the whole.
inline void lay_out(Header& h) {
  const auto aligned = [](int64_t n) { return (n + 63) / 64 * 64; };
  h.scales_at = int64_t(sizeof(Header)) + codes_bytes(h);
  h.offsets_at = h.scales_at + aligned(tiles_of(h) * param_bytes(h, h.scale_kind));
  h.bytes = h.offsets_at + aligned(tiles_of(h) * param_bytes(h, h.offset_kind));
}

Header plan(const int8_t* codes, const float* scales, const float* offsets, int64_t rows, int64_t columns, int group,
            int threads);
void pack_tiles(const Header& h, const int8_t* codes, const float* scales, const float* offsets, int64_t first,
                int64_t last, uint8_t* to);

// The kernels of variant 0 .. 2, or null where this processor does not run them.
const Kernels* runnable(int variant);

// Codes (rows, columns), scales and offsets (rows, columns / group) -> codes of -8 .. 7 and one step for 32 columns, which
// half precision holds where it can. Returns the sum of the squares of what was lost.
double coarsen(const int8_t* codes, const float* scales, const float* offsets, int64_t rows, int64_t columns, int group,
               int8_t* rounded, float* steps, int threads);

// False without memory for the activations.
bool run_stack(const Kernels& kernels, const AttentionKernels& attention, const StackModel& model, const StackCall& call);

// out (n, rows) = x (n, columns) times the transpose of `exact`, where an output may be the largest of its row; the others
// are those of `coarse`, the same matrix rounded, whose elements are off by `noise` (root mean square). n <= 16 or so.
bool run_shortlist(const Kernels& kernels, const uint8_t* coarse, const uint8_t* exact, float noise, const float* x,
                   int64_t n, float* out, int threads);

}  // namespace minimemo
