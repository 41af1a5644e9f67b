// See memory.h.
#include "memory.h"

#include <cstdlib>
#include <mutex>

namespace minimemo {
namespace {

constexpr size_t kHead = 64, kLeast = 1 << 18, kMost = 64 << 20;  // bytes: of a piece that is kept, of all of them

struct Piece {  // stands before its memory
  size_t bytes;
  Piece* next;
};

std::mutex lock;  // never waited for: who was forked may find it taken for ever
Piece* kept = nullptr;  // the last one given back first
size_t kept_bytes = 0;

Piece* unlink(Piece** at) {
  Piece* piece = *at;
  *at = piece->next;
  kept_bytes -= piece->bytes;
  return piece;
}

// The smallest piece that is kept and large enough, or null.
Piece* found(size_t bytes) {
  const std::unique_lock<std::mutex> locked(lock, std::try_to_lock);
  if (!locked) return nullptr;
  Piece** best = nullptr;
  for (Piece** at = &kept; *at; at = &(*at)->next)
    if ((*at)->bytes >= bytes && (!best || (*at)->bytes < (*best)->bytes)) best = at;
  return best ? unlink(best) : nullptr;
}

}  // namespace

Memory allocate(size_t bytes) {
  Piece* piece = bytes >= kLeast ? found(bytes) : nullptr;
  if (!piece) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kHead, kHead + bytes)) return nullptr;
    piece = static_cast<Piece*>(memory);
    piece->bytes = bytes;
  }
  return Memory(reinterpret_cast<uint8_t*>(piece) + kHead);
}

void give_back(uint8_t* memory) {
  Piece* piece = reinterpret_cast<Piece*>(memory - kHead);
  if (piece->bytes < kLeast || piece->bytes > kMost) return std::free(piece);
  const std::unique_lock<std::mutex> locked(lock, std::try_to_lock);
  if (!locked) return std::free(piece);
  piece->next = kept;
  kept = piece;
  kept_bytes += piece->bytes;
  while (kept_bytes > kMost) {
    Piece** last = &kept;
    while ((*last)->next) last = &(*last)->next;
    std::free(unlink(last));
  }
}

}  // namespace minimemo
