// Scratch memory of a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace minimemo {

void give_back(uint8_t* memory);

struct GiveBack {
  void operator()(uint8_t* memory) const { give_back(memory); }
};
using Memory = std::unique_ptr<uint8_t, GiveBack>;

// On a cache line, not zeroed; null when there is none to be had. Some large pieces are kept for the calls to come, as
// their pages are there already.
Memory allocate(size_t bytes);

// Hands out 64-byte aligned pieces of one allocation; first counts them, then, with memory, cuts them.
struct Cutter {
  uint8_t* at;
  size_t used = 0;
  template <typename T>
  T* take(int64_t count) {
    T* piece = at ? reinterpret_cast<T*>(at + used) : nullptr;
    used += (size_t(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

}  // namespace minimemo
