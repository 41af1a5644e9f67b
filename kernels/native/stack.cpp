// See stack.h. Phases that are worth two threads are cut by for_each; what lies between runs on the caller's.
#include "stack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "product.h"

namespace minimemo {
namespace {

uint16_t to_bfloat16(float value) {  // to nearest, ties to even; not-a-numbers stay so
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 64);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float from_bfloat16(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Dimension i pairs with i + dim / 2 (arXiv 2104.09864).
void rotate(float* x, const float* cosines, const float* sines, int dim) {
  const int half = dim / 2;
  for (int i = 0; i < half; i++) {
    const float first = x[i], second = x[i + half];
    x[i] = first * cosines[i] - second * sines[i];
    x[i + half] = second * cosines[i + half] + first * sines[i + half];
  }
}

struct Step {
  const Kernels& kernels;
  const StackModel& m;
  const StackCall& c;
  const Work work;
  const int64_t pass;  // rows of one product
  std::vector<float> normed, qkv, mixed, added, gate_up, gated;
  std::vector<AttentionSource> sources;
  Memory memory;

  Step(const Kernels& kernels, const StackModel& model, const StackCall& call)
      : kernels(kernels),
        m(model),
        c(call),
        work(call.tokens > kFewTokens ? Work::kLong : Work::kShort),
        pass(std::min<int64_t>(call.tokens, kMaxRows)) {
    const size_t n = size_t(c.tokens);
    normed.resize(n * m.hidden);
    qkv.resize(n * (m.heads + 2 * m.kv_heads) * m.dim);
    mixed.resize(n * m.heads * m.dim);
    added.resize(n * m.hidden);
    gate_up.resize(size_t(pass) * 2 * m.intermediate);
    gated.resize(size_t(pass) * m.intermediate);
    size_t most = 0;
    for (int i = 0; i < m.count; i++)
      for (const StackMatrix* matrix : {&m.layers[i].qkv, &m.layers[i].out, &m.layers[i].gate_up, &m.layers[i].down})
        most = std::max(most, product(*matrix).bytes(pass));
    memory = allocate(most);
  }

  Product product(const StackMatrix& matrix) const {
    return Product(kernels, matrix.parts, int(matrix.count), c.fine != 0, c.threads);
  }

  // body(first, last) over all tokens, some at a time where there are many.
  template <typename Body>
  void tokens(Body body) const {
    constexpr int64_t kTokens = kFewTokens;
    for_each(work, c.threads, (c.tokens + kTokens - 1) / kTokens, [&](int64_t piece) {
      body(piece * kTokens, std::min((piece + 1) * kTokens, c.tokens));
    });
  }

  void multiply(const StackMatrix& matrix, const float* x, float* out, int64_t rows) {
    Product found = product(matrix);
    for (int64_t row = 0; row < rows; row += pass) {
      found.bind(memory.get(), std::min(rows - row, pass));
      found.quantize(work, x + row * found.columns());
      found.multiply(work, matrix.bias, out + row * found.rows());
    }
  }

  void norm(const float* x, const float* weight, float* out) const {
    tokens([&](int64_t first, int64_t last) {
      for (int64_t at = first * m.hidden; at < last * m.hidden; at += m.hidden)
        kernels.rms_norm(x + at, weight, m.norm_eps, m.hidden, out + at);
    });
  }

  // x += part, which is normalized first where the model does so.
  void add(float* part, const float* weight) const {
    if (weight) norm(part, weight, part);
    tokens([&](int64_t first, int64_t last) {
      for (int64_t i = first * m.hidden; i < last * m.hidden; i++) c.x[i] += part[i];
    });
  }

  void write(void* to, bool bfloat16, int64_t at, const float* from) const {
    if (bfloat16)
      for (int d = 0; d < m.dim; d++) static_cast<uint16_t*>(to)[at + d] = to_bfloat16(from[d]);
    else
      std::memcpy(static_cast<float*>(to) + at, from, size_t(m.dim) * 4);
  }

  // Queries and keys of one token normalized and rotated, its keys and values written into its cache. Keys are rounded
  // to the cache's type before they are rotated, as a memory that holds them would give them back.
  void store(const StackLayer& layer, int index, const StackCache& cache, int64_t slot, int64_t token) {
    const float* cosines = c.cosines[layer.rotation] + token * m.dim;
    const float* sines = c.sines[layer.rotation] + token * m.dim;
    float* q = qkv.data() + token * (m.heads + 2 * m.kv_heads) * m.dim;
    float* k = q + m.heads * m.dim;
    const float* v = k + m.kv_heads * m.dim;
    for (int h = 0; h < m.heads + m.kv_heads; h++) {
      float* head = q + h * m.dim;
      const float* weight = h < m.heads ? layer.q_norm : layer.k_norm;
      if (weight) kernels.rms_norm(head, weight, m.norm_eps, m.dim, head);
      if (h >= m.heads) {
        if (c.raw_keys)
          write(c.raw_keys, cache.bfloat16, ((int64_t(index) * m.kv_heads + h - m.heads) * c.tokens + token) * m.dim, head);
        if (cache.bfloat16)
          for (int d = 0; d < m.dim; d++) head[d] = from_bfloat16(to_bfloat16(head[d]));
      }
      rotate(head, cosines, sines, m.dim);
    }
    for (int g = 0; g < m.kv_heads; g++) {
      const int64_t at = index * cache.layer_stride + g * cache.head_stride + slot * m.dim;
      write(cache.keys, cache.bfloat16, at, k + g * m.dim);
      write(cache.values, cache.bfloat16, at, v + g * m.dim);
    }
  }

  void store(const StackLayer& layer, int index) {
    tokens([&](int64_t first, int64_t last) {
      int64_t begin = 0;
      for (int64_t r = 0; r < c.row_count; begin += c.rows[r++].count) {
        const StackCache& cache = c.rows[r];
        for (int64_t t = std::max(first, begin); t < std::min(last, begin + cache.count); t++)
          store(layer, index, cache, cache.length + t - begin, t);
      }
    });
  }

  AttentionSource source(const StackCache& cache, int index, int64_t keys, int64_t first, int64_t tokens,
                         int64_t last_seen, int64_t window) const {
    const int64_t at = index * cache.layer_stride * (cache.bfloat16 ? 2 : 4);
    return {static_cast<const uint8_t*>(cache.keys) + at,
            static_cast<const uint8_t*>(cache.values) + at,
            cache.head_stride, keys, first, tokens, last_seen, window, int32_t(cache.bfloat16), 0};
  }

  void attend(const StackLayer& layer, int index) {
    constexpr int64_t kUnmasked = int64_t(1) << 40;
    sources.clear();
    const int64_t shared = c.prefix ? c.prefix->length : 0;
    if (shared && layer.window == 0) sources.push_back(source(*c.prefix, index, shared, 0, c.tokens, kUnmasked, 0));
    int64_t first = 0;
    for (int64_t r = 0; r < c.row_count; r++) {
      const StackCache& row = c.rows[r];
      sources.push_back(source(row, index, row.length + row.count, first, row.count, row.length, layer.window));
      if (shared && layer.window)
        sources.push_back(source(*c.prefix, index, shared, first, row.count, shared + row.length, layer.window));
      first += row.count;
    }
    Attention a{};
    a.q = qkv.data();
    a.q_token = int64_t(m.heads + 2 * m.kv_heads) * m.dim;
    a.out = mixed.data();
    a.out_token = int64_t(m.heads) * m.dim;
    a.q_head = a.out_head = m.dim;
    a.source = sources.data();
    a.tokens = c.tokens;
    a.sources = int32_t(sources.size());
    a.heads = m.heads;
    a.kv_heads = m.kv_heads;
    a.dim = m.dim;
    a.scale = m.scale;
    attention(kernels, a, work, c.threads);
  }

  // The gated activations are computed and rounded to integers by all threads, some columns each.
  void feed_forward(const StackLayer& layer) {
    for (int64_t row = 0; row < c.tokens; row += pass) {
      const int64_t rows = std::min(c.tokens - row, pass);
      multiply(layer.gate_up, normed.data() + row * m.hidden, gate_up.data(), rows);
      Product down = product(layer.down);
      down.bind(memory.get(), rows);
      constexpr int64_t kColumns = 16 * kBlock;
      for_each(work, c.threads, (m.intermediate + kColumns - 1) / kColumns, [&](int64_t piece) {
        const int64_t first = piece * kColumns, last = std::min<int64_t>(first + kColumns, m.intermediate);
        for (int64_t t = 0; t < rows; t++) {
          const float* gate = gate_up.data() + t * 2 * m.intermediate + first;
          kernels.gate(gate, gate + m.intermediate, m.gate, last - first, gated.data() + t * m.intermediate + first);
        }
        down.quantize_columns(gated.data(), first, last);
      });
      down.sum();
      down.multiply(work, layer.down.bias, added.data() + row * m.hidden);
    }
  }

  void run() {
    for (int index = 0; index < m.count; index++) {
      const StackLayer& layer = m.layers[index];
      norm(c.x, layer.attention_norm, normed.data());
      multiply(layer.qkv, normed.data(), qkv.data(), c.tokens);
      store(layer, index);
      attend(layer, index);
      multiply(layer.out, mixed.data(), added.data(), c.tokens);
      add(added.data(), layer.post_attention_norm);
      norm(c.x, layer.mlp_norm, normed.data());
      feed_forward(layer);
      add(added.data(), layer.post_mlp_norm);
    }
  }
};

}  // namespace

bool run_stack(const Kernels& kernels, const StackModel& model, const StackCall& call) {
  Step step(kernels, model, call);
  if (!step.memory) return false;
  step.run();
  return true;
}

}  // namespace minimemo
