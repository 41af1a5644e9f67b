// Scratch memory of a call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace minimemo {

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<uint8_t, FreeDeleter>;

// On a cache line; null when there is none to be had.
inline Memory allocate(size_t bytes) {
  void* memory = nullptr;
  return Memory(posix_memalign(&memory, 64, bytes + 64) ? nullptr : static_cast<uint8_t*>(memory));
}

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
