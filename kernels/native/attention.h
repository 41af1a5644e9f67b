// Attention of a few or many query tokens over one kv head: what api.cpp and the kernels share.
#pragma once

#include <cstdint>

namespace minimemo {

// Query token i (0 .. tokens - 1) of head h (0 .. group - 1) is row i * group + h; all share one kv head.
struct AttentionTask {
  const float* q;  // (tokens, group, dim) by the strides below, in floats
  int64_t q_token, q_head;
  int tokens, group, dim;
  const void* keys;  // (.., dim) of this kv head, floats or bfloat16, tokens one after the other
  const void* values;
  int bfloat16;
  int64_t first_key, last_key;  // those to attend to
  // Token i sees keys up to index `last_seen + i`, and of those the last `window`, where window > 0. Without a mask,
  // last_seen is far behind the last key.
  int64_t last_seen, window;
  float scale;
  float* out;  // (tokens, group, dim), normalized; zeros where nothing is seen
  int64_t out_token, out_head;
  float* lse;  // (tokens, group), or null: natural logarithm of the sum of exponentials; -inf where nothing is seen
  int64_t lse_token, lse_head;
};

// Keys and values of one kind: a sequence's own, or a memory that several share.
struct AttentionSource {
  const void* keys;    // (kv heads, .., dim), heads `head_stride` numbers apart
  const void* values;
  int64_t head_stride, keys_count;
  int64_t first_token, tokens;  // the query tokens that attend to it
  int64_t last_seen, window;    // as in AttentionTask, of the first of those tokens
  int32_t bfloat16, reserved;
};

// All heads; each query token attends to the union of its sources.
struct Attention {
  const float* q;  // (tokens, heads, dim) by the strides below
  int64_t q_token, q_head;
  float* out;  // likewise
  int64_t out_token, out_head;
  float* lse;  // (heads, tokens), or null
  const AttentionSource* source;
  int64_t tokens;
  int32_t sources, heads, kv_heads, dim;
  float scale;
};

constexpr int kFewTokens = 16;   // query tokens up to which work is cut along the keys, not the tokens
constexpr int kKeyBlock = 256;   // keys whose scores are held at once

// Bytes of scratch that a kernel needs for a task of so many rows.
inline int64_t attention_scratch(int64_t rows, int dim) {
  const int64_t wide = (int64_t(dim) + 63) / 64 * 64;
  return 4 * (2 * rows * wide + 4 * rows + 2 * kKeyBlock * wide + 2 * 16 * (kKeyBlock + 64)) + 4096;
}

}  // namespace minimemo
