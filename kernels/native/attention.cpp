// Attention of all heads: how the work is cut, and how its parts are put together.
#include <algorithm>
#include <cstring>
#include <vector>

#include "native.h"
#include "threads.h"

namespace minimemo {
namespace {

constexpr int64_t kTileTokens = 64;  // query tokens of one piece when there are many
constexpr int64_t kLeastKeys = 512, kMostKeys = 2048;  // of one piece when there are few

struct Piece {
  int source, kv_head;
  int64_t first_token, tokens;  // of all
  int64_t first_key, last_key;
  float *out, *lse;  // (tokens, group, dim) and (tokens, group), or null: straight to the result
};

// A thread's own memory, kept for its next piece.
void* scratch(size_t bytes) {
  static thread_local std::vector<uint8_t> memory;
  if (memory.size() < bytes + 64) memory.resize(bytes + 64);
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

}  // namespace

void attention(const Kernels& kernels, const Attention& a, Work work, int threads) {
  const int group = a.heads / a.kv_heads;
  const bool few = a.tokens <= kFewTokens;
  std::vector<Piece> pieces;
  size_t partial = 0;  // floats
  for (int s = 0; s < a.sources; s++) {
    const AttentionSource& source = a.source[s];
    const int64_t step = few ? source.tokens : kTileTokens;
    for (int64_t at = 0; at < source.tokens; at += step) {
      const int64_t count = std::min(step, source.tokens - at), last_seen = source.last_seen + at;
      const int64_t end = std::min(source.keys_count, last_seen + count);
      const int64_t begin = source.window > 0 ? std::max<int64_t>(0, last_seen + 1 - source.window) : 0;
      // Long pieces keep a thread on one stream of memory; they begin at whole multiples.
      const int64_t keys = few ? std::clamp(end / 8 / kKeyBlock * kKeyBlock, kLeastKeys, kMostKeys) : end;
      for (int64_t key = few ? begin / keys * keys : 0; key < end; key += keys)
        for (int g = 0; g < a.kv_heads; g++) {
          const int64_t last = std::min(key + keys, end);
          pieces.push_back({s, g, source.first_token + at, count, std::max(key, begin), last, nullptr, nullptr});
          partial += size_t(count) * group * (a.dim + 1);
        }
    }
  }
  const bool whole = !few && a.sources == 1;  // every row has one piece
  std::vector<float> memory(whole ? 0 : partial);
  float* rest = memory.data();
  for (Piece& piece : pieces) {
    if (whole) break;
    piece.out = rest;
    piece.lse = rest + piece.tokens * group * a.dim;
    rest = piece.lse + piece.tokens * group;
  }
  if (!few)  // the last tokens see most keys: begin with those
    std::reverse(pieces.begin(), pieces.end());
  for_each(work, threads, int64_t(pieces.size()), [&](int64_t i) {
    const Piece& piece = pieces[size_t(i)];
    const AttentionSource& source = a.source[piece.source];
    const int64_t element = source.bfloat16 ? 2 : 4, head = piece.kv_head * source.head_stride * element;
    AttentionTask task{};
    task.q = a.q + piece.first_token * a.q_token + int64_t(piece.kv_head) * group * a.q_head;
    task.q_token = a.q_token;
    task.q_head = a.q_head;
    task.tokens = int(piece.tokens);
    task.group = group;
    task.dim = a.dim;
    task.keys = static_cast<const uint8_t*>(source.keys) + head;
    task.values = static_cast<const uint8_t*>(source.values) + head;
    task.bfloat16 = source.bfloat16;
    task.first_key = piece.first_key;
    task.last_key = piece.last_key;
    task.last_seen = source.last_seen + piece.first_token - source.first_token;
    task.window = source.window;
    task.scale = a.scale;
    if (whole) {
      task.out = a.out + piece.first_token * a.out_token + int64_t(piece.kv_head) * group * a.out_head;
      task.out_token = a.out_token;
      task.out_head = a.out_head;
      task.lse = a.lse ? a.lse + int64_t(piece.kv_head) * group * a.tokens + piece.first_token : nullptr;
      task.lse_token = 1;
      task.lse_head = a.tokens;
    } else {
      task.out = piece.out;
      task.out_token = int64_t(group) * a.dim;
      task.out_head = a.dim;
      task.lse = piece.lse;
      task.lse_token = group;
      task.lse_head = 1;
    }
    kernels.attend(task, scratch(size_t(attention_scratch(piece.tokens * group, a.dim))));
  });
  if (whole) return;
  std::vector<const float*> parts(pieces.size());
  std::vector<float> lses(pieces.size());
  for (int64_t token = 0; token < a.tokens; token++)
    for (int h = 0; h < a.heads; h++) {
      int count = 0;
      for (const Piece& piece : pieces) {
        const int64_t row = token - piece.first_token;
        if (piece.kv_head != h / group || row < 0 || row >= piece.tokens) continue;
        parts[size_t(count)] = piece.out + (row * group + h % group) * a.dim;
        lses[size_t(count++)] = piece.lse[row * group + h % group];
      }
      const float lse = kernels.merge(parts.data(), lses.data(), count, a.dim, a.out + token * a.out_token + h * a.out_head);
      if (a.lse) a.lse[h * a.tokens + token] = lse;
    }
}

}  // namespace minimemo
