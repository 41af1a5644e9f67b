// All layers of a decoder in one call: between its products a step of one token is a few microseconds of arithmetic, which
// a call from Python for each would bury. The structures are filled in by kernels/native/stack.py.
#pragma once

#include <cstdint>

#include "attention.h"

namespace minimemo {

struct StackMatrix {  // packed parts of one width, one below the other (format.h), and a bias or null
  const uint8_t* const* parts;
  const float* bias;
  int64_t count;
};

struct StackLayer {  // norms of kinds that a model lacks are null
  const float *attention_norm, *mlp_norm, *q_norm, *k_norm, *post_attention_norm, *post_mlp_norm;
  StackMatrix qkv, out, gate_up, down;
  int64_t window;    // keys that a token sees, 0: all
  int64_t rotation;  // which of StackCall's tables
};

struct StackModel {
  const StackLayer* layers;
  int32_t count, heads, kv_heads, dim, hidden, intermediate, gate;
  float norm_eps, scale;
  int32_t reserved;
};

struct StackCache {  // keys and values (layers, kv heads, capacity, dim), by strides in numbers
  void *keys, *values;
  int64_t layer_stride, head_stride, length;
  int64_t count;  // tokens of this call that continue it
  int64_t bfloat16;
  const Segment* packed;  // the tokens before the dense ones, heads of all layers in a row; or null
};

struct StackCall {
  float* x;  // (tokens, hidden): embeddings in, the last layer's output out
  int64_t tokens;
  const float* cosines[2];  // (tokens, dim) each
  const float* sines[2];
  const StackCache* rows;  // own caches, whose tokens follow each other in x
  const StackCache* prefix;  // a shared memory before all of them, or null
  int64_t row_count;
  void* raw_keys;  // (layers, kv heads, tokens, dim) of the rows' type: keys before their rotation; or null
  int32_t fine, threads;
};

}  // namespace minimemo
